"use strict";

// Plots: their data stands beside them as JSON. Colours of text and grid come from the style sheet.
for (const place of document.querySelectorAll(".plot")) {
  const { data, layout } = JSON.parse(place.querySelector("script").textContent);
  layout.font = { ...layout.font, family: getComputedStyle(document.body).fontFamily };
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
  Plotly.newPlot(place, data, layout, { responsive: true, displayModeBar: false });
}

// Copy buttons. A page from the disk may not use the clipboard; then the text is selected to be copied by hand.
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      if (!document.execCommand("copy")) said = "Selected";
    }
    button.textContent = said;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

// The animation: after k passes, the tokens of passes 0 to k - 1 are there, and the others are masks.
const source = document.getElementById("animation");
if (source) {
  const { columns, cases } = JSON.parse(source.textContent);
  const [which, play, pass, passes, canvases] = ["which", "play", "pass", "passes", "canvases"].map((id) =>
    document.getElementById(id),
  );
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let spans = []; // [element, pass] of all tokens
  let timer = null;

  cases.forEach((each, index) => which.add(new Option(each.prompt.trim().slice(0, 80), index)));

  function build() {
    spans = [];
    canvases.replaceChildren(
      ...cases[which.value].answers.map((answer, index) => {
        const canvas = document.createElement("div");
        const title = document.createElement("h4");
        const text = document.createElement("p");
        canvas.className = "answer";
        title.textContent = columns[index];
        text.className = "tokens canvas";
        answer.tokens.forEach(([token, confidence, order], position) => {
          const span = document.createElement("span");
          const isEnd = position >= answer.end;
          span.textContent = isEnd ? "∎" : token;
          span.classList.toggle("end", isEnd);
          span.title = `${token}, confidence ${confidence}, pass ${order + 1}`;
          span.style.setProperty("--doubt", (1 - confidence).toFixed(2));
          spans.push([span, order]);
          text.append(span);
        });
        canvas.append(title, text);
        return canvas;
      }),
    );
    pass.max = 1 + Math.max(0, ...spans.map(([, order]) => order));
    pass.value = Math.ceil(pass.max / 2);
    show();
  }

  function show() {
    const done = Number(pass.value);
    for (const [span, order] of spans) {
      span.classList.toggle("mask", order >= done);
      span.classList.toggle("fresh", order === done - 1);
    }
    passes.textContent = `pass ${done} of ${pass.max}`;
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }

  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (pass.value === pass.max) pass.value = 0;
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    const pause = calm.matches ? 1000 : Math.min(400, Math.max(60, 7000 / pass.max)); // milliseconds
    timer = setInterval(() => {
      pass.value = Number(pass.value) + 1;
      show();
      if (pass.value === pass.max) stop();
    }, pause);
    show();
  });
  pass.addEventListener("input", () => {
    stop();
    show();
  });
  which.addEventListener("change", () => {
    stop();
    build();
  });
  build();
}
