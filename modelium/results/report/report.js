// Puts the pictures into the page; those of one run at a time where there are several.

function showRun(data, run) {
  showMoment(null);
  byId("ttft-legend").replaceChildren(...ttftLegend(run));
  drawTtft(byId("ttft"), run);
  drawModels(byId("models"), run.models);
  const others = run.gpus.some((gpu) => gpu.bands.some((band) => band.colour >= data.named.length));
  byId("memory-legend").replaceChildren(...memoryLegend(data.named, others));
  drawGpus(byId("gpus"), run, data.named);
  byId("residency-legend").replaceChildren(...residencyLegend());
  drawGantt(byId("gantt"), run);
  const hidden = run.residency.left_out;
  byId("gantt-note").textContent = hidden ? `The ${hidden} models with the fewest requests are not shown.` : "";
  drawLog(run);
}

function pickRuns(data) {
  const picker = byId("picker");
  picker.hidden = data.runs.length < 2;
  data.runs.forEach((run, i) => {
    const button = html("input", { type: "radio", name: "run", value: i });
    button.checked = i === 0;
    button.addEventListener("change", () => showRun(data, run));
    picker.append(html("label", {}, button, ` ${run.name}`));
  });
}

function start() {
  const data = JSON.parse(byId("data").textContent);
  hatches();
  if (data.runs.length > 1) byId("cdf-legend").append(...data.runs.map((run, i) => lineSwatch(run.name, lineStyle(i))));
  drawCdf(byId("cdf-ttft"), data.runs, "ttft", "Time to first token (TTFT)");
  drawCdf(byId("cdf-e2e"), data.runs, "e2e", "Arrival to last token (E2E)");
  pickRuns(data);
  showRun(data, data.runs[0]);
}

start();
