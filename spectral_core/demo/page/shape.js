// The first tab's panel: bars that are dragged, an address that follows, tables that stay open, changes read aloud.
// Runs once; the server then changes this element in place, and `watch` hears of it.
const announce = document.createElement("div");
announce.id = "announce";
announce.className = "offscreen";
announce.setAttribute("aria-live", "polite");
element.after(announce);
const open = new Set();
let drag = null, shownQuery = null, speak = null, newest = props.value, turn = 0;

const svgOf = (role) => element.querySelector(`.spectrum[data-role="${role}"]`);
const hitsOf = (svg) => [...svg.querySelectorAll(".hit")];
const valuesOf = (svg) => hitsOf(svg).map((hit) => Number(hit.dataset.value));

function draw(svg, values) {
  const { top, floor, ceiling } = svg.dataset;
  svg.querySelectorAll(".bar.after").forEach((bar, i) => {
    const height = Math.min(values[i] / top, 1) * (floor - ceiling);
    bar.setAttribute("height", height);
    bar.setAttribute("y", floor - height);
  });
}

// one bar to a height; the others give way, so that values stay in descending order
function raise(values, i, value) {
  return values.map((v, j) => (j === i ? value : j < i ? Math.max(v, value) : Math.min(v, value)));
}

// the first bar that is moved turns what is seen now, of all three roles, into the drawing
function send(role, values) {
  const drawn = { [role]: values.map((v) => Number(v.toPrecision(4))) };
  if (element.querySelector(".view").dataset.kind !== "drawn")
    for (const other of ["q", "k", "v"]) if (other !== role) drawn[other] = valuesOf(svgOf(other));
  window.sendDrawing(JSON.stringify(drawn));
}

// by the place and the axis of the drag's start: a new axis, or a longer sentence above, must not move the value
function place(svg, event) {
  const { box, top } = drag, view = svg.viewBox.baseVal;
  const { largest, floor, ceiling } = svg.dataset;
  const x = ((event.clientX - box.left) / box.width) * view.width;
  const y = ((event.clientY - box.top) / box.height) * view.height;
  const hits = hitsOf(svg), first = Number(hits[0].getAttribute("x")), width = Number(hits[0].getAttribute("width"));
  const i = Math.min(hits.length - 1, Math.max(0, Math.floor((x - first) / width)));
  const value = ((floor - y) / (floor - ceiling)) * top;
  return [i, Math.min(Math.max(value, 0), top, largest)];
}

element.addEventListener("pointerdown", (event) => {
  const svg = event.target.closest?.(".spectrum");
  if (!svg || !event.target.classList.contains("hit")) return;
  event.preventDefault();
  event.target.focus();
  svg.setPointerCapture(event.pointerId);
  drag = { role: svg.dataset.role, values: valuesOf(svg), box: svg.getBoundingClientRect(), top: svg.dataset.top };
  move(event);
});

function move(event) {
  if (!drag) return;
  const svg = svgOf(drag.role), [i, value] = place(svg, event);
  drag.values = raise(drag.values, i, value);
  draw(svg, drag.values);
  send(drag.role, drag.values);
}

element.addEventListener("pointermove", move);
for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, () => (drag = null));

element.addEventListener("keydown", (event) => {
  const hit = event.target;
  if (!hit.classList?.contains("hit")) return;
  const svg = hit.closest(".spectrum"), hits = hitsOf(svg), i = Number(hit.dataset.i);
  const beside = { ArrowLeft: i - 1, ArrowRight: i + 1 }[event.key];
  if (beside !== undefined) {
    event.preventDefault();
    hits[beside]?.focus();
    return;
  }
  const now = Number(hit.dataset.value), most = Number(svg.dataset.largest);
  const next = {
    ArrowUp: now + 0.05, ArrowDown: now - 0.05, PageUp: now + 0.5, PageDown: now - 0.5, Home: 0, End: most,
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const values = raise(valuesOf(svg), i, Math.min(Math.max(next, 0), most));
  hits.forEach((other, j) => (other.dataset.value = values[j])); // keys come faster than answers
  draw(svg, values);
  send(svg.dataset.role, values);
});

element.addEventListener("toggle", (event) => {
  const all = [...element.querySelectorAll("details")], i = all.indexOf(event.target);
  if (event.target.open) open.add(i);
  else open.delete(i);
}, true);

function settle() {
  const arrived = Number(element.querySelector(".view")?.dataset.turn ?? 0);
  if (arrived < turn) {
    props.value = newest; // two controls moved at once, and the first answer came last
    return;
  }
  [newest, turn] = [props.value, arrived];
  element.querySelectorAll("details").forEach((details, i) => (details.open = open.has(i)));
  if (drag && svgOf(drag.role)) draw(svgOf(drag.role), drag.values);
  const view = element.querySelector(".view");
  const story = document.querySelector(".story");
  if (view && story?.dataset.query) story.querySelector(".left").hidden = story.dataset.query === view.dataset.query;
  if (!view || view.dataset.query === shownQuery) return;
  if (shownQuery !== null || location.search.length > 1) {
    const kept = [...new URLSearchParams(location.search)].filter(([name]) => name.startsWith("__"));
    const rest = new URLSearchParams(kept).toString();
    history.replaceState(null, "", `?${view.dataset.query}${rest && "&" + rest}${location.hash}`);
  }
  shownQuery = view.dataset.query;
  clearTimeout(speak);
  speak = setTimeout(() => (announce.textContent = element.querySelector("#said").textContent), 1000);
}

shownQuery = element.querySelector(".view")?.dataset.query ?? null;
watch("value", settle);
