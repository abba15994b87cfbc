// Latency: cumulative distributions, and TTFT over time with cold starts.

const DASHES = ["", "7 3", "2 3", "9 3 2 3"];

function lineStyle(i) {
  return { class: `c${[4, 5, 2, 6, 0, 1, 7, 8][i % 8]} stroke`, "stroke-dasharray": DASHES[(i + Math.floor(i / 8)) % 4] };
}

function lineSwatch(text, style, d = "M1 6H25") {
  return html("span", {}, svg("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" }, svg("path", { d, ...style })), text);
}

function drawCdf(box, runs, key, title) {
  const range = decadesAround(runs.flatMap((run) => run.felt[key].x));
  const [low, high] = [range[0], range[range.length - 1]];
  mount(box, (width) => {
    const left = 46, right = width - 16, top = 26, bottom = 236;
    const root = canvas(width, bottom + 40, `${title}: share of requests within a time`);
    const x = logarithmic(low, high, left, right), y = linear(0, 1, bottom, top);
    root.append(label(left, 14, title, "start", { class: "name" }));
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      root.append(rule(left, y(share), right, y(share)), label(left - 6, y(share) + 4, `${share * 100} %`, "end"));
    }
    range.forEach((tick, i) => {
      root.append(rule(x(tick), bottom, x(tick), bottom + 4));
      if (i % Math.ceil(range.length / (width / 75)) === 0) root.append(label(x(tick), bottom + 17, duration(tick), tick === high ? "end" : "middle"));
    });
    root.append(label(right, bottom + 34, "seconds, logarithmic", "end"));
    runs.forEach((run, i) => root.append(svg("path", { d: cdfPath(run.felt[key], x, y), ...lineStyle(i) }, svg("title", {}, run.name))));
    return root;
  });
}

function cdfPath({ x: seconds, p }, x, y) {
  return seconds.map((s, i) => `${i ? `H${x(s).toFixed(1)}V` : `M${x(s).toFixed(1)} ${y(0)}V`}${y(p[i]).toFixed(1)}`).join("");
}

function cross(x, y) {
  return `M${(x - 2.5).toFixed(1)} ${(y - 2.5).toFixed(1)}l5 5m0-5l-5 5`;
}

function ttftLegend(run) {
  const { at, of } = run.felt.cold;
  const shown = at.length < of ? ` (${at.length.toLocaleString("en")} of ${of.toLocaleString("en")} shown)` : "";
  return [
    lineSwatch("half of the requests within", { class: "c4 stroke" }),
    lineSwatch("99 % within", { class: "c5 stroke thin", "stroke-dasharray": "5 2" }),
    lineSwatch(`a cold start${shown}`, { class: "marks" }, cross(13, 6)),
  ];
}

function drawTtft(box, run) {
  const { over_time: bins, cold } = run.felt;
  const range = decadesAround([...bins.p50, ...bins.p99, ...cold.ttft]);
  mount(box, (width) => {
    const left = 54, right = width - 8, top = 8, bottom = 218;
    const root = canvas(width, bottom + 36, "Time to first token over the run");
    const x = linear(0, run.end, left, right);
    const y = logarithmic(range[0], range[range.length - 1], bottom, top);
    for (const tick of range) root.append(rule(left, y(tick), right, y(tick)), label(left - 6, y(tick) + 4, duration(tick), "end"));
    const marks = cold.at.map((at, i) => cross(x(at), y(cold.ttft[i]))).join("");
    root.append(svg("path", { d: marks, class: "marks", "stroke-opacity": cold.at.length > 300 ? 0.45 : 1 }));
    root.append(svg("path", { d: stairs(bins.p99, run.end, x, y), class: "c5 stroke thin", "stroke-dasharray": "5 2" }));
    root.append(svg("path", { d: stairs(bins.p50, run.end, x, y), class: "c4 stroke" }));
    timeAxis(root, x, run.end, bottom, top);
    return root;
  });
}

// A line in steps, broken where a bin has no value.
function stairs(values, end, x, y) {
  let path = "", before = null;
  values.forEach((value, i) => {
    if (value !== null) {
      const [from, to] = [x((i * end) / values.length), x(((i + 1) * end) / values.length)];
      path += before === null ? `M${from.toFixed(1)} ${y(value).toFixed(1)}` : `V${y(value).toFixed(1)}`;
      path += `H${to.toFixed(1)}`;
    }
    before = value;
  });
  return path;
}
