// Residency: a row per model, with waiting requests in red and arrivals as ticks.

const ROW = { bar: 9, wait: 4, came: 5 };

function residencyLegend() {
  return [
    swatch("loaded", stateStyle(4, 0)),
    swatch("loading or leaving", stateStyle(4, 1)),
    swatch("asleep", stateStyle(4, 2)),
    swatch("requests wait for the model", { class: "wait", y: 4, height: 4 }),
    swatch("arrivals (stronger: more)", { class: "came", y: 4, height: 5, "fill-opacity": 0.5 }),
  ];
}

function drawGantt(box, run) {
  const { rows } = run.residency;
  const most = Math.max(1, ...rows.flatMap((row) => row.arrivals));
  mount(box, (width) => {
    const narrow = width < 560, left = narrow ? 4 : 170, right = width - 8;
    const each = ROW.bar + ROW.wait + ROW.came + (narrow ? 24 : 8);
    const root = canvas(width, rows.length * each + 46, "Residency of each model over time");
    const x = linear(0, run.end, left, right);
    rows.forEach((row, i) => {
      const top = i * each + (narrow ? 20 : 6);
      const name = fitted(row.model, narrow ? width / 7.5 : 22);
      const text = narrow ? label(left, top - 5, name, "start", { class: "name" }) : label(left - 8, top + 12, name, "end", { class: "name" });
      text.append(svg("title", {}, row.model));
      root.append(text, ganttRow(row, x, top, run.end, most), rule(left, top + each - 5, right, top + each - 5));
    });
    timeAxis(root, x, run.end, rows.length * each + 8, 4);
    return root;
  });
}

function fitted(text, letters) {
  return text.length <= letters ? text : `${text.slice(0, Math.floor(letters) - 1)}…`;
}

function ganttRow(row, x, top, end, most) {
  const group = svg("g");
  for (const state of [2, 0, 1]) {
    const bar = svg("path", { d: boxes(row.bars[state], x, top, ROW.bar), ...stateStyle(row.colour, state) });
    bar.append(svg("title", {}, `${row.model}, ${STATES[state]}`));
    group.append(bar);
  }
  const waiting = svg("path", { d: boxes(row.waits, x, top + ROW.bar + 1, ROW.wait - 1), class: "wait" });
  waiting.append(svg("title", {}, `${row.model}: requests wait for it`));
  group.append(waiting, ...arrivals(row.arrivals, x, top + ROW.bar + ROW.wait + 1, end, most));
  return group;
}

// Intervals as rectangles, at least a hair wide.
function boxes(intervals, x, top, height) {
  let path = "";
  for (let i = 0; i < intervals.length; i += 2) {
    const from = x(intervals[i]), wide = Math.max(0.8, x(intervals[i + 1]) - from);
    path += `M${from.toFixed(1)} ${top}h${wide.toFixed(1)}v${height}h${(-wide).toFixed(1)}Z`;
  }
  return path;
}

// Five shades of density; each is one path.
function arrivals(counts, x, top, end, most) {
  const shades = ["", "", "", "", ""], wide = end / counts.length;
  counts.forEach((count, i) => {
    const shade = Math.min(4, Math.floor(5 * Math.sqrt(count / most)));
    if (count) shades[shade] += boxes([i * wide, (i + 1) * wide], x, top, ROW.came);
  });
  return shades.map((d, i) => svg("path", { d, class: "came", "fill-opacity": 0.2 + 0.2 * i }));
}
