// GPU memory by model over time, in steps, with the busy share below.

const STATES = ["ready", "loading or leaving", "asleep"];
const GPUS_A_PICTURE = 8;

function hatches() {
  const box = svg("svg", { width: 0, height: 0, "aria-hidden": "true", style: "position:absolute;width:0;height:0" });
  for (let colour = 0; colour <= 8; colour++) {
    const pattern = svg("pattern", {
      id: `hatch${colour}`, class: `c${colour}`, width: 5, height: 5,
      patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
    });
    pattern.append(svg("rect", { width: 2, height: 5, style: "fill:var(--c)" }));
    box.append(pattern);
  }
  document.body.prepend(box);
}

function stateStyle(colour, state) {
  if (state === 0) return { class: `c${colour} fill` };
  if (state === 2) return { class: `c${colour} asleep` };
  return { class: `c${colour} hatched`, fill: `url(#hatch${colour})` };
}

function swatch(text, style) {
  const box = svg("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" });
  box.append(svg("rect", { x: 1, y: 1, width: 24, height: 10, ...style }));
  return html("span", {}, box, text);
}

function memoryLegend(named, withOthers) {
  const items = named.map((name, i) => swatch(name, stateStyle(i, 0)));
  if (withOthers) items.push(swatch("all other models", stateStyle(8, 0)));
  items.push(swatch("hatched: loading or leaving", stateStyle(8, 1)), swatch("pale: asleep", stateStyle(8, 2)));
  items.push(swatch("busy: 0 to 100 % of the time", { class: "busy" }));
  return items;
}

function drawGpus(box, run, named) {
  const groups = [];
  for (let i = 0; i < run.gpus.length; i += GPUS_A_PICTURE) groups.push(run.gpus.slice(i, i + GPUS_A_PICTURE));
  box.replaceChildren();
  groups.forEach((gpus, i) => {
    const figure = html("figure");
    const draw = () => mount(figure, (width) => memoryPicture(width, gpus, run.end, named));
    if (i === 0) {
      box.append(figure);
      draw();
      return;
    }
    const title = html("summary", {}, `GPUs ${gpus[0].id} to ${gpus[gpus.length - 1].id}`);
    const more = html("details", {}, title, figure);
    more.addEventListener("toggle", draw, { once: true });
    box.append(more);
  });
}

function memoryPicture(width, gpus, end, named) {
  const left = 46, right = width - 8, high = 78, busy = 24, each = 22 + high + 6 + busy + 12;
  const root = canvas(width, gpus.length * each + 34, "GPU memory by model over time, busy share below");
  const x = linear(0, end, left, right);
  gpus.forEach((gpu, i) => {
    const top = i * each + 22;
    root.append(label(left, top - 6, `${gpu.id}  ${gpu.kind}`, "start", { class: "name" }));
    memoryPanel(root, gpu, x, linear(0, gpu.gib, top + high, top), named);
    busyPanel(root, gpu.busy, x, end, top + high + 6, busy);
  });
  timeAxis(root, x, end, gpus.length * each, 22);
  return root;
}

function memoryPanel(root, gpu, x, y, named) {
  const [left, right] = [x(gpu.edges[0]), x(gpu.edges[gpu.edges.length - 1])];
  const base = new Array(gpu.edges.length - 1).fill(0);
  const tags = [];
  for (const band of gpu.bands) {
    const name = band.colour < named.length ? named[band.colour] : "all other models";
    const path = svg("path", { d: steps(gpu.edges, base, band.gib, x, y), ...stateStyle(band.colour, band.state) });
    path.append(svg("title", {}, `${name}, ${STATES[band.state]}`));
    root.append(path);
    if (band.state === 0 && band.colour < named.length) tags.push(tag(gpu.edges, base, band, name, x, y));
    band.gib.forEach((gib, k) => { base[k] += gib; });
  }
  root.append(...tags.filter((found) => found !== null));
  root.append(svg("rect", { x: left, y: y(gpu.gib), width: right - left, height: y(0) - y(gpu.gib), class: "frame" }));
  root.append(label(left - 6, y(gpu.gib) + 10, `${Number(gpu.gib.toPrecision(3))}`, "end"), label(left - 6, y(0), "0", "end"));
  root.append(label(left - 6, (y(0) + y(gpu.gib)) / 2 + 4, "GiB", "end"));
}

// One closed outline for each stretch in which the band is there.
function steps(edges, base, values, x, y) {
  let path = "";
  for (let i = 0; i < values.length; ) {
    if (!values[i]) { i++; continue; }
    let last = i;
    while (last + 1 < values.length && values[last + 1]) last++;
    path += `M${x(edges[i]).toFixed(1)} ${y(base[i]).toFixed(1)}`;
    for (let k = i; k <= last; k++) path += `V${y(base[k] + values[k]).toFixed(1)}H${x(edges[k + 1]).toFixed(1)}`;
    for (let k = last; k >= i; k--) path += `V${y(base[k]).toFixed(1)}H${x(edges[k]).toFixed(1)}`;
    path += "Z";
    i = last + 1;
  }
  return path;
}

// The model's name (or its first letters) where its band is widest, if there is room at all.
function tag(edges, base, band, name, x, y) {
  let best = null;
  for (let i = 0; i < band.gib.length; ) {
    let last = i, low = base[i], high = base[i] + band.gib[i];
    while (last + 1 < band.gib.length) {
      const below = Math.max(low, base[last + 1]), above = Math.min(high, base[last + 1] + band.gib[last + 1]);
      if (y(below) - y(above) < 13) break;
      [low, high, last] = [below, above, last + 1];
    }
    const wide = x(edges[last + 1]) - x(edges[i]);
    if (y(low) - y(high) >= 13 && (!best || wide > best.wide)) best = { wide, i, last, low, high };
    i = last + 1;
  }
  const letters = best ? Math.floor((best.wide - 6) / 7) : 0;
  if (letters < 3 || (name.length > letters && letters < 9)) return null; // a few letters tell nothing
  const text = name.length <= letters ? name : `${name.slice(0, letters - 1)}…`;
  const at = (x(edges[best.i]) + x(edges[best.last + 1])) / 2;
  return label(at, (y(best.low) + y(best.high)) / 2 + 4, text, "middle", { class: `c${band.colour} tag` });
}

function busyPanel(root, share, x, end, top, height) {
  const edges = share.map((_, i) => (i * end) / share.length).concat(end);
  const y = linear(0, 1, top + height, top), none = share.map(() => 0);
  const path = svg("path", { d: steps(edges, none, share, x, y), class: "busy" });
  path.append(svg("title", {}, "share of time in which the GPU was busy, 0 to 100 %"));
  root.append(path, svg("rect", { x: x(0), y: top, width: x(end) - x(0), height, class: "frame" }));
  root.append(label(x(0) - 6, top + height / 2 + 4, "busy", "end"));
}
