// What the moving figures share. `stage` is an empty element, `data` what the page has computed.
const draw = (parent, kind, attributes = {}, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  parent.append(made);
  return made;
};

const make = (parent, kind, text = "", fields = {}) => {
  const made = document.createElement(kind);
  made.textContent = text;
  Object.assign(made, fields);
  parent.append(made);
  return made;
};

const canvas = (width, height, label) => draw(stage, "svg", {
  viewBox: `0 0 ${width} ${height}`,
  role: "img",
  "aria-label": label,
  style: `width: 100%; max-width: ${width}px; touch-action: pan-y; user-select: none`,
});

// a slider: by mouse, by finger, and by the arrow keys
const slider = (label, min, max, step, value, onMove) => {
  const line = make(stage, "label", `${label} `, {style: "display: block"});
  const fields = {type: "range", min, max, step, value};
  const input = make(line, "input", "", fields);
  input.style.width = "min(100%, 22rem)";
  input.addEventListener("input", () => onMove(Number(input.value)));
  return input;
};

const choice = (label, names, onChoose) => {
  const line = make(stage, "label", `${label} `, {style: "margin-right: 1rem"});
  const input = make(line, "select");
  for (const name of names) make(input, "option", name, {value: name});
  input.addEventListener("change", () => onChoose(input.value));
  return input;
};

// where the pointer is while it is down, in the units of the drawing
const drag = (svg, onMove) => {
  svg.style.touchAction = "none";
  const move = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY);
    const inside = at.matrixTransform(svg.getScreenCTM().inverse());
    onMove(inside.x, inside.y);
  };
  svg.addEventListener("pointerdown", (event) => {
    svg.setPointerCapture(event.pointerId);
    move(event);
  });
  svg.addEventListener("pointermove", (event) => {
    if (svg.hasPointerCapture(event.pointerId)) move(event);
  });
};

const said = () => {
  const line = make(stage, "p");
  line.setAttribute("aria-live", "polite");
  return line;
};

const COLORS = ["#0173b2", "#c65d00", "#02795a", "#a2348f", "#8a5a1c", "#5c5c5c"];
