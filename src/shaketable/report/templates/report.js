"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const plots = [];
  root.classList.add("js");

  // The colour of a token such as "@tone-0" or "@ink/0.2" in the theme that is shown.
  const colour = (token, probe) => {
    const [name, alpha] = token.slice(1).split("/");
    if (name === "clear") return "rgba(0,0,0,0)";
    probe.style.color = `var(--${name})`;
    const rgb = getComputedStyle(probe).color;
    return alpha ? rgb.replace(/^rgba?\(([^)]*)\)$/, `rgba($1, ${alpha})`) : rgb;
  };

  // A copy of a figure's part with the tokens replaced, in colours only: a name may look like a token.
  const themed = (value, probe, inColour) => {
    if (Array.isArray(value)) return value.map((item) => themed(item, probe, inColour));
    if (value !== null && typeof value === "object") {
      const pairs = Object.entries(value).map(([key, item]) => [key, themed(item, probe, /color(scale)?$/.test(key))]);
      return Object.fromEntries(pairs);
    }
    return inColour && typeof value === "string" && value.startsWith("@") ? colour(value, probe) : value;
  };

  const draw = (plot) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.hidden = true;
    const { data, layout } = themed(plot.figure, probe, false);
    probe.remove();
    for (const trace of data) if (trace.meta && plot.off.has(trace.meta.series)) trace.visible = false;
    layout.font.family = getComputedStyle(document.body).fontFamily;
    layout.width = plot.div.clientWidth;
    layout.height = plot.div.clientHeight;
    layout.uirevision = "zoom"; // what the reader zoomed to outlives a change of theme
    if (layout.scene) layout.scene.uirevision = "zoom";
    else layout.dragmode = coarse.matches ? false : "zoom";
    if (coarse.matches && !layout.scene) for (const axis of [layout.xaxis, layout.yaxis]) axis.fixedrange = true;
    return Plotly.react(plot.div, data, layout, { displayModeBar: false, scrollZoom: false, showTips: false });
  };
  const drawAll = () => plots.forEach(draw);

  const inSpace = () => Boolean(document.createElement("canvas").getContext("webgl"));

  const begin = (figure) => {
    const plot = {
      div: figure.querySelector(".plot"),
      figure: JSON.parse(figure.querySelector("script").textContent),
      off: new Set(),
    };
    if (plot.figure.layout.scene && !inSpace()) return; // its table stays
    figure.classList.add("drawn");
    plot.div.style.minHeight = `${plot.figure.height}px`;
    draw(plot).then(
      () => { figure.querySelector("details").open = false; },
      () => figure.classList.remove("drawn"),
    );
    plots.push(plot);
    for (const key of figure.querySelectorAll(".key")) {
      key.addEventListener("click", () => {
        const series = Number(key.dataset.series), shown = plot.off.delete(series);
        if (!shown) plot.off.add(series);
        key.setAttribute("aria-pressed", String(shown));
        draw(plot);
      });
    }
  };

  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const say = (text) => { document.getElementById("status").textContent = text; };

  const copy = async (button) => {
    const pre = button.parentElement.querySelector("pre");
    getSelection().selectAllChildren(pre);
    try {
      await navigator.clipboard.writeText(pre.textContent);
      say("Copied");
      button.textContent = "Copied";
    } catch {
      say("Selected");
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };

  const print = () => {
    const kept = { theme: root.dataset.theme, closed: [...document.querySelectorAll("details.source:not([open])")] };
    root.dataset.theme = "light";
    root.classList.add("printing");
    for (const details of kept.closed) details.open = true;
    drawAll();
    addEventListener("afterprint", () => {
      if (kept.theme) root.dataset.theme = kept.theme;
      else delete root.dataset.theme;
      root.classList.remove("printing");
      for (const details of kept.closed) details.open = false;
      drawAll();
    }, { once: true });
  };

  document.addEventListener("DOMContentLoaded", () => {
    const toggle = document.getElementById("theme");
    const show = () => { toggle.setAttribute("aria-pressed", String(theme() === "dark")); drawAll(); };
    toggle.hidden = false;
    toggle.addEventListener("click", () => { root.dataset.theme = theme() === "dark" ? "light" : "dark"; show(); });
    dark.addEventListener("change", show);
    for (const button of document.querySelectorAll(".copy")) {
      button.hidden = false;
      button.addEventListener("click", () => copy(button));
    }
    if (typeof Plotly !== "undefined") document.querySelectorAll(".chart").forEach(begin);
    toggle.setAttribute("aria-pressed", String(theme() === "dark"));
    let width = innerWidth, waiting = 0;
    addEventListener("resize", () => {
      if (innerWidth === width) return;
      width = innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(drawAll, 120);
    });
    addEventListener("beforeprint", print);
  });
})();
