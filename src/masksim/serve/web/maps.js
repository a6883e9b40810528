// Similarity maps: which frequencies speak for a generator, to look at and to point at.

import { el } from "./dom.js";

// As the pictures of the command line: blue, white, red, equally light on both sides.
const ANCHORS = [
  [10, 48, 107], [38, 110, 180], [148, 196, 223], [248, 248, 248],
  [245, 170, 130], [208, 72, 62], [108, 4, 32],
];

const COLOURS = (() => {
  const table = new Uint32Array(255);
  const view = new Uint8Array(table.buffer);
  for (let k = 0; k < 255; k += 1) {
    const at = (k / 254) * (ANCHORS.length - 1);
    const low = Math.min(Math.floor(at), ANCHORS.length - 2);
    for (let c = 0; c < 3; c += 1) {
      view[4 * k + c] = Math.round(
        ANCHORS[low][c] + (at - low) * (ANCHORS[low + 1][c] - ANCHORS[low][c]),
      );
    }
    view[4 * k + 3] = 255;
  }
  return table;
})();

async function unpack(grid) {
  if (!grid.steps) {
    const packed = Uint8Array.from(atob(grid.data), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    grid.steps = new Int8Array(await new Response(stream).arrayBuffer());
    delete grid.data;
  }
  return grid;
}

/** The absolute value that few exceed: where the colours end. */
function limit(grids) {
  const sizes = [];
  for (const { steps, scale } of grids) {
    for (const step of steps) if (step) sizes.push(Math.abs(step) * scale);
  }
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor(0.995 * (sizes.length - 1))] || 1;
}

function paint(canvas, grid, most) {
  canvas.width = grid.width;
  canvas.height = grid.height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid.width, grid.height);
  const pixels = new Uint32Array(image.data.buffer);
  const factor = (127 * grid.scale) / most;
  for (let k = 0; k < pixels.length; k += 1) {
    const place = Math.max(-127, Math.min(127, Math.round(grid.steps[k] * factor)));
    pixels[k] = COLOURS[place + 127];
  }
  context.putImageData(image, 0, 0);
}

const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

const share = (part) => `${Number((100 * part).toPrecision(2))}\u00a0%`;

/** The spots of a map that added most, in words. */
function spots(one) {
  if (!one.marks.length) return el("p", { class: "note" }, "Nothing raised the similarity.");
  const total = one.marks.reduce((sum, mark) => sum + mark.share, 0);
  const text = total < 0.5
    ? `What speaks for it is spread over many patterns; these make up ${share(total)} of it:`
    : `A few patterns carry most of what speaks for it, ${share(total)}:`;
  return el("div", {}, [
    el("p", { class: "note" }, text),
    el("ol", { class: "spots" }, one.marks.map((mark) => el("li", {}, `${mark.words} (${share(mark.share)})`))),
  ]);
}

/** What counted for the generators that matter: all channels in one map each. */
export async function overview(answer) {
  const { generators, telling } = answer.maps;
  const shown = generators.slice(0, telling);
  await Promise.all(shown.map((one) => unpack(one.composed)));
  return shown.map((one) => {
    const canvas = el("canvas", { role: "img", "aria-label": `What counted for ${one.generator}` });
    paint(canvas, one.composed, limit([one.composed]));
    const marks = one.marks.map((mark, k) => {
      const spot = el("span", { class: "spot", "aria-hidden": "true" }, String(k + 1));
      spot.style.left = `${100 * (mark.fx + 0.5)}%`;
      spot.style.top = `${100 * (mark.fy + 0.5)}%`;
      return spot;
    });
    return el("div", { class: "counted" }, [
      el("div", { class: "composed" }, [canvas, ...marks]),
      el("div", {}, [el("h4", {}, one.generator), spots(one)]),
    ]);
  });
}

let serial = 0;

/** Draw the maps of single channels into an element. */
export async function draw(into, answer) {
  const { generators, spectra } = answer.maps;
  await Promise.all(spectra.map(unpack));
  serial += 1;
  const id = `map-${serial}`;

  const chooser = el("select", { id: `${id}-generator` }, generators.map(
    (one, k) => el("option", { value: k }, one.generator),
  ));
  const kinds = [["values", "What counted"], ["spectrum", "This image’s spectrum"]];
  const switches = kinds.map(([value, text], k) => el("label", {}, [
    el("input", { type: "radio", name: `${id}-kind`, value, checked: k === 0 }), text,
  ]));
  const big = el("canvas", { "aria-hidden": "true" });
  const over = el("canvas", { "aria-hidden": "true" });
  const field = el("div", {
    class: "field", tabindex: "0", role: "application",
    "aria-label": "Map of frequencies. Arrow keys move the pointer; Shift makes larger steps.",
    "aria-describedby": `${id}-read`,
  }, [big, over]);
  const axisY = el("div", { class: "axis-y", "aria-hidden": "true" });
  const axisX = el("div", { class: "axis-x", "aria-hidden": "true" });
  const read = el("p", { class: "read", id: `${id}-read`, "aria-live": "polite" });
  const tiles = el("fieldset", { class: "tiles" });
  const legend = el("div", { class: "legend", "aria-hidden": "true" });
  const note = el("p", { class: "map-note" });

  into.replaceChildren(
    el("div", { class: "map-head" }, [
      el("div", {}, [el("label", { for: `${id}-generator` }, "Generator"), chooser]),
      el("fieldset", {}, [el("legend", {}, "Shown"), el("div", { class: "switch" }, switches)]),
    ]),
    el("div", { class: "map-body" }, [
      el("div", {}, [el("div", { class: "plot" }, [axisY, field, axisX]), read]),
      el("div", {}, [tiles, legend, note]),
    ]),
  );

  let shown = generators[0];
  let kind = "values";
  let at = 0; // which plane
  let point = null; // column, row
  let most = 1;

  const gridOf = (plane) => (kind === "values" ? plane.values : spectra[plane.spectrum]);

  function rest() {
    const plane = shown.planes[at];
    read.replaceChildren(
      el("strong", {}, plane.name), el("br"),
      el("span", { class: "note" }, kind === "values"
        ? `This channel adds ${signed(plane.sum, 4)} of ${signed(shown.similarity, 4)}. Point at the ` +
          "map: each place is a ripple, coarse in the middle, fine at the edges."
        : "How much there is of each ripple. Point at the map: coarse in the middle, fine at the edges."),
    );
    over.getContext("2d").clearRect(0, 0, over.width, over.height);
  }

  function frequency([first, last], n, k) {
    return n > 1 ? first + ((last - first) * k) / (n - 1) : first;
  }

  function tell() {
    if (!point) {
      rest();
      return;
    }
    const plane = shown.planes[at];
    const grid = gridOf(plane);
    const [x, y] = point;
    const fx = frequency(plane.fx, grid.width, x);
    const fy = frequency(plane.fy, grid.height, y);
    const radius = Math.hypot(fx, fy);
    const value = grid.zero + grid.scale * grid.steps[y * grid.width + x];
    const ripple = radius < 1e-6
      ? "the mean, no ripple"
      : `a ripple every ${(1 / radius).toFixed(1)} pixels`;
    let effect;
    if (kind === "values") {
      const part = shown.similarity ? Math.abs(value / shown.similarity) * 100 : 0;
      const digits = part < 0.0995 ? 3 : 2;
      effect = Math.abs(value) < 1e-9
        ? "Adds nothing."
        : `${value > 0 ? "Adds" : "Takes away"} ${Math.abs(value).toExponential(1)}, ` +
          `${part.toFixed(digits)} % of the similarity ${shown.similarity.toFixed(4)}.`;
    } else {
      effect = `Level ${signed(value, 2)}.`;
    }
    read.replaceChildren(
      el("strong", {}, plane.name), el("br"),
      `${signed(fx, 3)} across, ${signed(fy, 3)} down, in cycles/pixel: ${ripple}.`, el("br"), effect,
    );
    over.width = 4 * grid.width;
    over.height = 4 * grid.height;
    const context = over.getContext("2d");
    context.lineWidth = 4;
    for (const [colour, size] of [["#fff", 14], ["#111", 18]]) {
      context.strokeStyle = colour;
      context.strokeRect(4 * x + 2 - size / 2, 4 * y + 2 - size / 2, size, size);
    }
  }

  function axes() {
    const plane = shown.planes[at];
    const grid = gridOf(plane);
    const ticks = (range, n, side, holder) => {
      const top = Math.abs(range[0]);
      for (const value of [-top, -top / 2, 0, top / 2]) {
        const place = ((value - range[0]) / (range[1] - range[0])) * ((n - 1) / n) + 0.5 / n;
        const tick = el("span", {}, value === 0 ? "0" : value.toFixed(Math.abs(value) < 0.2 ? 3 : 2)
          .replace("-", "−"));
        tick.style[side] = `${100 * Math.min(Math.max(place, 0), 1)}%`;
        holder.append(tick);
      }
    };
    axisY.replaceChildren();
    axisX.replaceChildren();
    ticks(plane.fy, grid.height, "top", axisY);
    ticks(plane.fx, grid.width, "left", axisX);
    axisX.append(el("span", { class: "unit" }, "cycles/pixel"));
  }

  function show() {
    const plane = shown.planes[at];
    most = kind === "values"
      ? limit(shown.planes.map((one) => one.values))
      : limit([gridOf(plane)]);
    paint(big, gridOf(plane), most);
    axes();
    tell();
  }

  function drawTiles() {
    // "brightness, median": what comes before the comma is a row, what comes after a column.
    const rows = new Map();
    shown.planes.forEach((plane, k) => {
      const cut = plane.name.indexOf(", ");
      const row = cut < 0 ? "" : plane.name.slice(0, cut);
      if (!rows.has(row)) rows.set(row, []);
      rows.get(row).push({ plane, k, column: cut < 0 ? plane.name : plane.name.slice(cut + 2) });
    });
    const tops = kind === "values" ? limit(shown.planes.map((one) => one.values)) : null;
    const parts = [el("legend", { class: "unseen" }, "Channel of the noise")];
    const [first] = rows.values();
    if (rows.size > 1) {
      parts.push(el("div", { class: "tile-row heads", "aria-hidden": "true" }, [
        el("span"), ...first.map((one) => el("span", {}, one.column)),
      ]));
    }
    for (const [row, cells] of rows) {
      const sum = cells.reduce((total, one) => total + one.plane.sum, 0);
      parts.push(el("div", { class: "tile-row" }, [
        el("span", { class: "row-name", "aria-hidden": "true" }, [
          row || "all", kind === "values" ? el("b", {}, signed(sum, 3)) : "",
        ]),
        ...cells.map(({ plane, k }) => {
          const canvas = el("canvas", { "aria-hidden": "true" });
          const grid = gridOf(plane);
          paint(canvas, grid, tops ?? limit([grid]));
          const input = el("input", {
            type: "radio", name: `${id}-plane`, value: k, checked: k === at, title: plane.name,
            "aria-label": `${plane.name}, ${signed(plane.sum, 4)}`,
          });
          input.addEventListener("change", () => {
            at = k;
            point = null;
            show();
          });
          return el("label", { class: "tile" }, [canvas, input]);
        }),
      ]));
    }
    tiles.replaceChildren(...parts);
    tiles.style.setProperty("--n", Math.max(...[...rows.values()].map((cells) => cells.length)));
    const gradient = el("canvas");
    gradient.width = 255;
    gradient.height = 1;
    const context = gradient.getContext("2d");
    const image = context.createImageData(255, 1);
    new Uint32Array(image.data.buffer).set(COLOURS);
    context.putImageData(image, 0, 0);
    legend.replaceChildren(
      el("span", {}, kind === "values" ? "takes away" : "less"), gradient,
      el("span", {}, kind === "values" ? "adds" : "more"),
    );
    note.textContent = kind === "values"
      ? `All channels together add up to the similarity with ${shown.generator}: ` +
        `${shown.similarity.toFixed(4)}. Each row is brightness or a colour, each column another ` +
        "way to take the content out."
      : "The image’s own noise, beside the mean of real photos. It is the same for every generator.";
  }

  async function choose() {
    shown = generators[Number(chooser.value)];
    await Promise.all(shown.planes.map((plane) => unpack(plane.values)));
    at = Math.min(at, shown.planes.length - 1);
    drawTiles();
    show();
  }

  chooser.addEventListener("change", choose);
  for (const label of switches) {
    label.firstChild.addEventListener("change", (event) => {
      kind = event.target.value;
      drawTiles();
      show();
    });
  }
  const pointed = (event) => {
    const box = field.getBoundingClientRect();
    const grid = gridOf(shown.planes[at]);
    const place = (offset, size, n) => Math.max(0, Math.min(n - 1, Math.floor((offset / size) * n)));
    point = [
      place(event.clientX - box.left, box.width, grid.width),
      place(event.clientY - box.top, box.height, grid.height),
    ];
    tell();
  };
  field.addEventListener("pointermove", pointed);
  field.addEventListener("pointerdown", pointed);
  field.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") {
      point = null;
      tell();
    }
  });
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      point = null;
      tell();
    }
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const grid = gridOf(shown.planes[at]);
    const far = event.shiftKey ? 8 : 1;
    const [x, y] = point ?? [grid.width / 2, grid.height / 2];
    point = [
      Math.max(0, Math.min(grid.width - 1, x + far * step[0])),
      Math.max(0, Math.min(grid.height - 1, y + far * step[1])),
    ];
    tell();
  });

  await choose();
}
