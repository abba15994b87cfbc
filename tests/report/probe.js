// Uses the report as a person would, in a frame of a given width, and tells the harness what it saw.
const texts = (selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent);
const rows = () => texts("#decisions tbody tr");
const column = (i) => texts(`#models tbody tr > :nth-child(${i})`);

function overlaps() {
  const found = [];
  for (const picture of document.querySelectorAll("svg[role=img]")) {
    const frame = picture.getBoundingClientRect();
    const boxes = [...picture.querySelectorAll("text")].map((node) => [node.textContent, node.getBoundingClientRect()]);
    boxes.forEach(([text, a], i) => {
      if (a.left < frame.left - 4 || a.right > frame.right + 4) found.push(`${text} leaves its picture`);
      for (const [other, b] of boxes.slice(i + 1)) {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && high > 4) found.push(`${text} over ${other}`);
      }
    });
  }
  return found;
}

function probe() {
  const seen = { overflow: document.documentElement.scrollWidth - innerWidth, overlaps: overlaps() };
  seen.pictures = document.querySelectorAll("svg[role=img]").length;
  seen.hacked = window.hacked === true;
  seen.models = column(1);
  const filter = document.getElementById("filter");
  seen.allRows = rows().length;
  filter.value = "wake gpu1";
  filter.dispatchEvent(new Event("input"));
  seen.filtered = rows();
  seen.count = document.getElementById("log-count").textContent;
  filter.value = "";
  filter.dispatchEvent(new Event("input"));
  document.querySelector("#decisions .more").click();
  seen.moreRows = rows().length;
  document.querySelectorAll("#models th button")[2].click();
  seen.down = column(3).map(Number);
  document.querySelectorAll("#models th button")[2].click();
  seen.up = column(3).map(Number);
  seen.hiddenCursors = document.querySelectorAll(".cursor[style*=none]").length;
  document.querySelectorAll("#decisions td button")[1].click();
  seen.cursors = document.querySelectorAll(".cursor:not([style*=none])").length;
  seen.moment = document.getElementById("moment").textContent;
  seen.chosen = document.querySelectorAll("#decisions tr.chosen").length;
  const before = document.querySelector("#gantt svg").innerHTML;
  document.querySelectorAll("#picker input")[1].click();
  seen.changed = document.querySelector("#gantt svg").innerHTML !== before;
  seen.errors = window.errors;
  parent.postMessage(JSON.stringify(seen), "*");
}

setTimeout(() => {
  try { probe(); } catch (error) { parent.postMessage(JSON.stringify({ errors: [String(error)] }), "*"); }
}, 200);
