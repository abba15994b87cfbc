"use strict";
// SVG elements, scales, axes, and the moment that all pictures over time share.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

function linear(low, high, from, to) {
  const scale = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  scale.back = (at) => low + ((at - from) / (to - from || 1)) * (high - low);
  return scale;
}

function logarithmic(low, high, from, to) {
  const straight = linear(Math.log10(low), Math.log10(high), from, to);
  return (value) => straight(Math.log10(Math.max(value, low)));
}

// About so many round numbers from 0 to high; hours, minutes and seconds have round numbers of their own.
const ROUND = { h: [1, 2, 3, 4, 6, 12, 24], min: [1, 2, 5, 10, 15, 30], s: [1, 2, 5, 10, 20, 30, 60, 120] };

function ticks(high, about, unit) {
  const rough = high / about || 1, power = 10 ** Math.floor(Math.log10(rough));
  const any = [1, 2, 5, 10].map((step) => step * power);
  const step = [...(ROUND[unit] || []), ...any].find((size) => size >= rough * 0.999);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => i * step);
}

function decades(low, high) {
  const first = Math.floor(Math.log10(low) + 1e-9), last = Math.ceil(Math.log10(high) - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i));
}

// The decades around all positive values.
function decadesAround(values) {
  let low = Infinity, high = 0;
  for (const value of values) {
    if (value > 0) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  if (!high) return [0.1, 1];
  const found = decades(Math.max(low, high / 1e6), high);
  return found.length > 1 ? found : [found[0], found[0] * 10];
}

function duration(s) {
  const [size, unit] = s < 1e-3 ? [1e-6, "µs"] : s < 1 ? [1e-3, "ms"] : [1, "s"];
  return `${Number((s / size).toPrecision(3)).toLocaleString("en")} ${unit}`;
}

function timeUnit(end) {
  const units = [[172800, 86400, "d"], [7200, 3600, "h"], [300, 60, "min"], [1, 1, "s"], [0, 1e-3, "ms"]];
  const [, size, name] = units.find(([least]) => end >= least);
  return { size, name };
}

function clock(s, end) {
  if (end < 300) return `${s.toFixed(3)} s`;
  const whole = Math.floor(s), two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

// Draw into `box` now and whenever its width changes; text keeps its size.
const watched = new WeakMap();
const watcher = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const entry = watched.get(target);
    if (entry && Math.abs(entry.width - contentRect.width) > 1) redraw(target, entry);
  }
});

function mount(box, draw) {
  const entry = { draw, width: 0 };
  watched.set(box, entry);
  redraw(box, entry);
  watcher.observe(box);
}

function redraw(box, entry) {
  entry.width = box.getBoundingClientRect().width;
  if (entry.width > 0) box.replaceChildren(entry.draw(entry.width));
}

function canvas(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

function label(x, y, text, anchor = "start", more = {}) {
  return svg("text", { x, y, "text-anchor": anchor, ...more }, text);
}

function rule(x1, y1, x2, y2, kind = "axis") {
  return svg("line", { x1, y1, x2, y2, class: kind });
}

// The time axis along y, and the pointer that picks a moment between top and y.
function timeAxis(root, x, end, y, top) {
  const unit = timeUnit(end), [left, right] = [x(0), x(end)];
  root.append(rule(left, y, right, y));
  for (const tick of ticks(end / unit.size, (right - left) / 80, unit.name)) {
    const at = x(tick * unit.size);
    root.append(rule(at, y, at, y + 4), label(at, y + 17, Number(tick.toPrecision(6)), "middle"));
  }
  root.append(label(right, y + 32, `time from start (${unit.name})`, "end"));
  followMoment(root, x, end, top, y);
}

let moment = null;
const followers = new Map();

function followMoment(root, x, end, top, bottom) {
  const line = rule(0, top, 0, bottom, "cursor");
  const area = svg("rect", { x: x(0), y: top, width: x(end) - x(0), height: bottom - top, class: "hit" });
  root.prepend(area);
  root.append(line);
  const pick = (event) => {
    const box = root.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * root.viewBox.baseVal.width;
    showMoment(Math.min(end, Math.max(0, x.back(at))), end);
  };
  root.addEventListener("pointerdown", pick);
  root.addEventListener("pointermove", (event) => event.pointerType === "mouse" && pick(event));
  followers.set(line, { x, end });
  place(line, x);
}

function place(line, x) {
  line.style.display = moment === null ? "none" : "";
  if (moment !== null) fill(line, { x1: x(moment), x2: x(moment) }, []);
}

function showMoment(s, end) {
  moment = s;
  for (const [line, { x }] of followers) line.isConnected ? place(line, x) : followers.delete(line);
  const note = byId("moment");
  note.hidden = s === null;
  if (s !== null) note.textContent = `at ${clock(s, end)}`;
}
