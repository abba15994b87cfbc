// The table of models, which sorts, and the decision log, which filters and jumps.

const MODEL_COLUMNS = [
  ["model", "", (name) => name, (name) => name],
  ["requests", "", (_, row) => row.requests, (n) => n.toLocaleString("en")],
  ["SLO met", "%", (_, row) => 100 * row.slo_attainment, (v) => v.toFixed(1)],
  ["cold starts", "", (_, row) => row.cold_starts, (n) => n.toLocaleString("en")],
  ["TTFT p50", "s", (_, row) => row.ttft_p50_s, (v) => v.toFixed(3)],
  ["TTFT p99", "s", (_, row) => row.ttft_p99_s, (v) => v.toFixed(3)],
];
const ROWS_AT_ONCE = 200;

function drawModels(box, models) {
  const rows = Object.entries(models).map(([name, row]) => MODEL_COLUMNS.map(([, , read]) => read(name, row)));
  const body = html("tbody"), heads = html("tr");
  MODEL_COLUMNS.forEach(([name, unit], i) => {
    const button = html("button", { type: "button" }, name);
    const head = html("th", { scope: "col" }, button, unit ? html("small", {}, ` ${unit}`) : null);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : i > 0;
      sortModels(heads, body, rows, i, down);
    });
    heads.append(head);
  });
  sortModels(heads, body, rows, 1, true);
  box.replaceChildren(html("table", {}, html("thead", {}, heads), body));
}

function sortModels(heads, body, rows, column, down) {
  for (const head of heads.children) head.removeAttribute("aria-sort");
  heads.children[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const sign = down ? -1 : 1;
  rows.sort((a, b) => {
    const [p, q] = [a[column], b[column]];
    if (p === null || q === null) return (p === null) - (q === null);
    return sign * (typeof p === "string" ? p.localeCompare(q) : p - q);
  });
  body.replaceChildren(...rows.map((row) => html("tr", {}, ...row.map(modelCell))));
}

function modelCell(value, i) {
  const text = value === null ? "–" : MODEL_COLUMNS[i][3](value);
  return i === 0 ? html("th", { scope: "row" }, text) : html("td", {}, text);
}

function drawLog(run) {
  const filter = byId("filter");
  const lines = run.log.rows.map((row) => ({ row, text: row.slice(2).join(" ").toLowerCase() }));
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = lines.filter(({ text }) => words.every((word) => text.includes(word)));
    byId("log-count").textContent = `${found.length.toLocaleString("en")} of ${lines.length.toLocaleString("en")} decisions`;
    fillLog(byId("decisions"), found, run.end);
  };
  filter.oninput = show;
  show();
  const left = run.log.of - lines.length;
  byId("log-note").textContent = left
    ? `${left.toLocaleString("en")} of ${run.log.of.toLocaleString("en")} decisions are left out here, evenly spaced; decisions.parquet has all of them.`
    : "Select a time to mark that moment in the charts above.";
}

function fillLog(box, found, end) {
  const heads = ["time", "action", "model", "GPU", "from", "took", "reason"];
  const head = html("tr", {}, ...heads.map((name) => html("th", { scope: "col", class: name === "took" ? "" : "text" }, name)));
  const body = html("tbody");
  const table = html("table", {}, html("thead", {}, head), body);
  const more = html("button", { type: "button", class: "more" }, "Show more");
  more.addEventListener("click", () => append());
  const append = () => {
    const from = body.children.length;
    body.append(...found.slice(from, from + ROWS_AT_ONCE).map(({ row }) => logRow(row, end)));
    more.hidden = body.children.length >= found.length;
  };
  append();
  box.replaceChildren(table, more);
}

function logRow([at, took, kind, model, gpus, tier, error, reason], end) {
  const why = html("td", { class: "reason" }, reason);
  if (error) why.append(html("span", { class: "failed" }, `${reason ? " · " : ""}${error.startsWith("cancelled: ") ? "" : "failed: "}${error}`));
  const button = html("button", { type: "button" }, clock(at, end));
  const line = html("tr", { class: "jump" }, html("td", { class: "text" }, button),
    ...[kind, model, gpus, tier].map((text) => html("td", { class: "text" }, text)),
    html("td", {}, took === null ? "–" : duration(took)), why);
  line.addEventListener("click", () => jump(line, at, end));
  return line;
}

function jump(line, at, end) {
  for (const other of line.parentNode.children) other.classList.toggle("chosen", other === line);
  showMoment(at, end);
  byId("memory").scrollIntoView();
}
