// Shows the responses that report_page.py has put into #data. What a model has written only ever becomes text nodes.
"use strict";

(async () => {
  const NO_TOKEN = 2 ** 32 - 1;
  const LEVELS = 16; // steps of the colour scale
  const SLICE = 4000; // tokens that are rendered between two frames
  const LONG = 24; // characters of a token that lines may break within
  const BLOCK = 200; // tokens after which the next line begins a new block, for the browser to skip out of sight
  // What a line may begin with: a space, or a letter of a script that is written without spaces.
  const BREAKS_BEFORE = /^(\s|\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}|\p{Script=Thai})/u;

  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { vocabulary, responses } = data;
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const nats = (entropy) => `${entropy.toFixed(3)} nats`;

  function element(name, properties = {}, ...children) {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  }

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // ------------------------------------------------------------------ entropies of all responses

  // One array per loop of a looped model, the last loop last; a single one of any other model.
  const loops = [];
  for (const packed of [...data.earlier, data.entropies]) loops.push(new Float32Array(await unpack(packed)));
  const sortedOfLoops = loops.map((entropies) => entropies.slice().sort()); // ascending
  let loop = loops.length - 1; // the one that is shown
  let sorted = sortedOfLoops[loop];
  let start = 0;
  for (const response of responses) {
    response.loops = loops.map((entropies) => entropies.subarray(start, start + response.length));
    start += response.length;
  }

  function takeLoop(number) {
    loop = number;
    sorted = sortedOfLoops[loop];
    for (const response of responses) {
      response.entropies = response.loops[loop];
      response.mean = response.entropies.reduce((sum, entropy) => sum + entropy, 0) / Math.max(response.length, 1);
    }
  }
  takeLoop(loop);

  // A square root, so that the many small entropies can be told apart. The few largest share the last colour. All loops
  // have one scale.
  const largestOf = (sorted) => sorted[Math.floor(0.999 * (sorted.length - 1))] || 0;
  const scaleEnd = Math.max(...sortedOfLoops.map(largestOf), 0.1);
  const place = (entropy) => Math.min(Math.sqrt(entropy / scaleEnd), 1);
  const style = new CSSStyleSheet();
  for (let level = 0; level < LEVELS; level++) {
    const share = (100 * level) / (LEVELS - 1);
    style.insertRule(`.e${level} { background: color-mix(in oklab, var(--heat) ${share}%, transparent); }`);
  }
  document.adoptedStyleSheets = [style];
  const level = (entropy) => `e${Math.min(Math.floor(place(entropy) * LEVELS), LEVELS - 1)}`;

  let threshold = data.threshold ?? Infinity;
  const isFork = (entropy) => entropy >= threshold;
  // The threshold that `number` tokens reach, and more only where entropies are equal.
  const thresholdOf = (sorted, number) => (number > 0 ? sorted[sorted.length - number] : Infinity);

  function numberOfForks() {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (isFork(sorted[middle])) high = middle;
      else low = middle + 1;
    }
    return sorted.length - low;
  }
  let wanted = numberOfForks(); // kept when the loop changes, where equal entropies may select more

  // ------------------------------------------------------------------ weights of all responses

  // Numbers that differ by rounding alone are the weights of a selection, whose outlines are all the same.
  const weights = data.weights && new Float32Array(await unpack(data.weights));
  const largestWeight = weights ? weights.reduce((largest, weight) => Math.max(largest, weight), 0) : 0;
  const isSoft = weights?.some((weight) => weight > 0 && weight < largestWeight * (1 - 1e-6)) ?? false;
  const weightText = (weight) => String(Number(weight.toPrecision(4)));
  let byWeight = weights !== null;
  start = 0;
  for (const response of responses) response.weights = weights?.subarray(start, (start += response.length));

  // Share of the largest weight on the page, 0 if no token has any.
  const share = (position) => current.weights[position] / (largestWeight || 1);
  const isOutlined = (position) => (byWeight ? share(position) > 0 : isFork(current.entropies[position]));
  // What the keyboard goes to; of soft weights few are 0.
  const stands = (position) => (byWeight && isSoft ? share(position) >= 0.5 : isOutlined(position));

  function outline(span, position) {
    span.classList.toggle("fork", isOutlined(position));
    span.classList.toggle("shaded", byWeight && isSoft && isOutlined(position));
    if (byWeight && isSoft) span.style.setProperty("--share", share(position));
  }

  // ------------------------------------------------------------------ one response

  let current; // the response that is shown, `null` if none is left
  let spans = []; // of its tokens
  let focused = 0; // the token that the Tab key leads to

  async function distributionsOf(response) {
    const buffer = await unpack(response.data);
    const size = (1 + response.alternatives) * response.length;
    return { tokens: new Uint32Array(buffer, 0, size), codes: new Uint16Array(buffer, 4 * size, size) };
  }

  // Column 0 is the token that was drawn, column i the i-th most probable one.
  const tokenAt = (position, column = 0) => vocabulary[current.tokens[column * current.length + position]];
  const probabilityAt = (position, column = 0) => {
    const code = current.codes[column * current.length + position];
    return code === 65535 ? 0 : Math.exp(-code / 1000);
  };

  function tokenSpan(position) {
    const entropy = current.entropies[position];
    const span = element("span", { className: `token ${level(entropy)}`, tabIndex: -1 });
    outline(span, position);
    span.classList.toggle("long", tokenAt(position).length > LONG);
    span.dataset.position = position;
    const text = tokenAt(position);
    if (!text) span.append(mark("∅"));
    for (const part of text.split(/(\n|\t)/)) {
      if (part === "\n") span.append(mark("↵"));
      else if (part === "\t") span.append(mark("⇥"));
      span.append(part);
    }
    return span;
  }

  // Drawn by the style sheet: what is copied from the page is the model's text.
  function mark(character) {
    const node = element("i", { className: "mark" });
    node.dataset.mark = character;
    return node;
  }

  async function show(response) {
    if (response === current) return;
    hideCard();
    current = response;
    spans = [];
    focused = 0;
    for (const other of responses) {
      other.option.ariaSelected = String(other === response);
      other.option.tabIndex = other === response ? 0 : -1;
    }
    $("label").textContent = response?.label ?? "No response";
    $("verdict").textContent = response ? verdict(response) : "";
    $("verdict").className = response?.correct ? "right" : "wrong";
    $("prompt").hidden = !response?.prompt;
    $("prompt").querySelector(".text").textContent = response?.prompt ?? "";
    $("response").replaceChildren();
    showStatistics();
    if (!response) return;
    if (!response.tokens) Object.assign(response, await distributionsOf(response));
    let block = null;
    let blockStart = 0;
    while (current === response && spans.length < response.length) {
      for (const end = Math.min(spans.length + SLICE, response.length); spans.length < end; ) {
        if (!block || (spans.length - blockStart >= BLOCK && tokenAt(spans.length - 1).endsWith("\n"))) {
          blockStart = spans.length;
          block = element("div", { className: "block" });
          $("response").append(block);
        }
        if (BREAKS_BEFORE.test(tokenAt(spans.length))) block.append(element("wbr"));
        spans.push(tokenSpan(spans.length));
        block.append(spans.at(-1));
      }
      spans[focused].tabIndex = 0;
      await new Promise(requestAnimationFrame);
    }
  }

  function verdict(response) {
    return response.correct === null ? "" : response.correct ? "✓ correct" : "✗ incorrect";
  }

  function showStatistics() {
    if (!current) return ($("statistics").textContent = "");
    const outlined = current.entropies.reduce((sum, _, position) => sum + isOutlined(position), 0);
    $("statistics").textContent =
      `${count(current.length, "token")}, mean entropy ${nats(current.mean)}, ` +
      `${outlined.toLocaleString("en")} ${byWeight ? "with weight" : "forking"} ` +
      `(${percent(outlined / Math.max(current.length, 1))})`;
  }

  // ------------------------------------------------------------------ the card of a token

  const visible = (text) =>
    text === "" ? "∅" : text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");

  function alternativesOf(position) {
    const rows = [];
    for (let column = 1; column <= current.alternatives; column++) {
      if (current.tokens[column * current.length + position] !== NO_TOKEN) rows.push(column);
    }
    const token = current.tokens[position];
    const drawn = rows.find((column) => current.tokens[column * current.length + position] === token);
    return { rows: rows.length && drawn === undefined ? [...rows, 0] : rows, drawn: drawn ?? 0 };
  }

  function showCard(span) {
    hideCard();
    const position = Number(span.dataset.position);
    const entropy = current.entropies[position];
    const { rows, drawn } = alternativesOf(position);
    const list = element("ol");
    for (const column of rows) {
      const probability = probabilityAt(position, column);
      const bar = element("div", { className: "bar" });
      bar.style.width = `${100 * probability}%`;
      list.append(
        element(
          "li",
          { className: column === drawn ? "drawn" : "" },
          element("bdi", {}, visible(tokenAt(position, column))),
          bar,
          element("span", { className: "percent" }, percent(probability)),
        ),
      );
    }
    const place = `${(position + 1).toLocaleString("en")} of ${current.length.toLocaleString("en")}`;
    const card = $("card");
    const ofLoop = (number) => {
      const value = current.loops[number][position];
      const forks = value >= (number === loop ? threshold : thresholdOf(sortedOfLoops[number], wanted));
      const className = number === loop ? "here" : "";
      return [
        element("dt", { className }, `Entropy after loop ${number + 1}`),
        element("dd", { className }, nats(value) + (forks ? ", forking" : "")),
      ];
    };
    card.replaceChildren(
      element("div", { className: "name" }, element("bdi", {}, visible(tokenAt(position))), element("span", {}, place)),
      element(
        "dl",
        {},
        ...(loops.length > 1
          ? loops.flatMap((_, number) => ofLoop(number))
          : [element("dt", {}, "Entropy"), element("dd", {}, nats(entropy) + (isFork(entropy) ? ", forking" : ""))]),
        element("dt", {}, "Probability when drawn"),
        element("dd", {}, percent(probabilityAt(position))),
        ...(weights ? [element("dt", {}, "Weight"), element("dd", {}, weightText(current.weights[position]))] : []),
      ),
      ...(rows.length ? [list] : []),
    );
    card.hidden = false;
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const below = box.bottom + 8;
    const fits = below + card.offsetHeight < innerHeight;
    card.style.top = `${Math.max(fits ? below : box.top - card.offsetHeight - 8, 8)}px`;
    card.style.left = `${Math.max(Math.min(box.left - 12, document.body.clientWidth - card.offsetWidth - 8), 8)}px`;
    span.classList.add("shown");
    span.setAttribute("aria-describedby", "card");
  }

  function hideCard() {
    $("card").hidden = true;
    for (const span of document.querySelectorAll(".shown")) {
      span.classList.remove("shown");
      span.removeAttribute("aria-describedby");
    }
  }

  const tokenOf = (event) => event.target.closest?.(".token");
  const reader = $("response");
  reader.addEventListener("pointerover", (event) => tokenOf(event) && showCard(tokenOf(event)));
  reader.addEventListener("pointerleave", () => {
    hideCard();
    if (reader.contains(document.activeElement)) showCard(document.activeElement);
  });
  reader.addEventListener("focusout", hideCard);
  reader.addEventListener("focusin", (event) => {
    if (!tokenOf(event)) return;
    spans[focused].tabIndex = -1;
    focused = Number(tokenOf(event).dataset.position);
    spans[focused].tabIndex = 0;
    showCard(spans[focused]);
  });
  addEventListener("scroll", hideCard, { passive: true });
  addEventListener("keydown", (event) => event.key === "Escape" && hideCard());
  reader.addEventListener("keydown", (event) => {
    const forkFrom = (position, step) => {
      while (position in spans && !stands(position)) position += step;
      return position;
    };
    const target = {
      ArrowLeft: () => focused - 1,
      ArrowRight: () => focused + 1,
      ArrowUp: () => forkFrom(focused - 1, -1),
      ArrowDown: () => forkFrom(focused + 1, 1),
      Home: () => 0,
      End: () => spans.length - 1,
    }[event.key]?.();
    if (target === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (!(target in spans)) return;
    spans[target].focus({ preventScroll: true });
    spans[target].scrollIntoView({ block: "nearest" });
    // Scrolling closes the card of the token that was left.
    requestAnimationFrame(() => requestAnimationFrame(() => focused === target && showCard(spans[target])));
  });

  // ------------------------------------------------------------------ threshold and legend

  function showThreshold() {
    const share = numberOfForks() / Math.max(sorted.length, 1);
    $("selection").replaceChildren(
      element("b", {}, percent(share)),
      Number.isFinite(threshold) ? ` of tokens, from ${nats(threshold)} on` : " of tokens",
    );
    $("marker").hidden = byWeight || !Number.isFinite(threshold);
    $("marker").style.left = `${100 * place(threshold)}%`;
    spans.forEach(outline);
    showStatistics();
    return share;
  }

  function setFraction(fraction) {
    wanted = Math.ceil(fraction * sorted.length - 1e-9);
    threshold = thresholdOf(sorted, wanted);
    showThreshold();
  }

  function showLoop(number) {
    takeLoop(number);
    threshold = thresholdOf(sorted, wanted);
    hideCard();
    spans.forEach((span, position) => {
      for (const name of [...span.classList]) if (/^e\d+$/.test(name)) span.classList.remove(name);
      span.classList.add(level(current.entropies[position]));
    });
    for (const response of responses) response.option.querySelector("small").textContent = sizeOf(response);
    showReached();
    showThreshold();
  }

  function showReached() {
    const mean = loops[loop].reduce((sum, entropy) => sum + entropy, 0) / Math.max(sorted.length, 1);
    $("reached").textContent = `${loop + 1} of ${loops.length}, mean ${nats(mean)}`;
  }

  function buildLoops() {
    if (loops.length < 2) return;
    $("loops").hidden = false;
    $("loop").max = loops.length;
    $("loop").value = loops.length;
    $("loop").addEventListener("input", (event) => showLoop(event.target.valueAsNumber - 1));
    showReached();
  }

  function buildLegend() {
    for (let i = 0; i < LEVELS; i++) $("ramp").append(element("i", { className: `e${i}` }));
    let last = -1;
    for (const entropy of [0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10]) {
      if (entropy > scaleEnd || place(entropy) - last < 0.13) continue;
      last = place(entropy);
      const tick = element("span", {}, String(entropy));
      tick.style.left = `${100 * last}%`;
      $("ticks").append(tick);
    }
  }

  function showOutlines() {
    $("weights").hidden = !byWeight;
    $("threshold").hidden = byWeight;
    $("aim").textContent =
      byWeight && isSoft ? "token of at least half the largest weight" : byWeight ? "token with weight" : "forking token";
    hideCard();
    return showThreshold();
  }

  function buildWeights() {
    if (!weights) return;
    $("outlines").hidden = false;
    for (const input of document.querySelectorAll("#outlines input")) {
      input.addEventListener("change", () => {
        byWeight = input.value === "weight";
        showOutlines();
      });
    }
    for (const part of isSoft ? [0, 0.25, 0.5, 0.75, 1] : [0, 1]) {
      const sample = element("span", { className: "sample" }, weightText(part * largestWeight));
      sample.classList.toggle("fork", part > 0);
      sample.classList.toggle("shaded", part > 0 && isSoft);
      sample.style.setProperty("--share", part);
      $("shades").append(sample);
    }
    const [total, squares, positive] = weights.reduce(
      ([total, squares, positive], weight) => [total + weight, squares + weight * weight, positive + (weight > 0)],
      [0, 0, 0],
    );
    const size = Math.max(weights.length, 1);
    const effect = `, effectively ${percent(squares ? total ** 2 / (size * squares) : 0)}`;
    $("meaning").replaceChildren(
      isSoft ? "the stronger and wider its outline, the more a token counts in the loss: " : "outlined tokens count in the loss: ",
      element("b", {}, percent(positive / size)),
      ` of tokens have weight${isSoft ? effect : ""}`,
    );
  }

  // ------------------------------------------------------------------ list and filter

  const filters = { all: () => true, correct: (r) => r.correct === true, incorrect: (r) => r.correct === false };

  const sizeOf = (response) => `${count(response.length, "token")}, mean ${nats(response.mean)}`;

  function buildList() {
    for (const response of responses) {
      const sign = response.correct === null ? "" : response.correct ? "✓" : "✗";
      response.option = element(
        "div",
        { role: "option", tabIndex: -1 },
        element("b", { title: response.label }, response.label || "response"),
        element("span", { className: response.correct ? "right" : "wrong", title: verdict(response) }, sign),
        element("small", {}, sizeOf(response)),
      );
      response.option.addEventListener("click", () => show(response));
    }
    $("list").append(...responses.map((response) => response.option));
    $("list").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const shown = responses.filter((response) => !response.option.hidden);
      const next = shown[shown.indexOf(current) + step];
      if (!next) return;
      show(next);
      next.option.focus();
    });
  }

  function buildFilter() {
    $("filter").hidden = responses.every((response) => response.correct === null);
    for (const [name, keeps] of Object.entries(filters)) {
      const input = element("input", { type: "radio", name: "filter", value: name, checked: name === "all" });
      input.addEventListener("change", () => applyFilter(keeps));
      $("filter").append(element("label", {}, input, `${name} (${responses.filter(keeps).length.toLocaleString("en")})`));
    }
  }

  function applyFilter(keeps) {
    for (const response of responses) response.option.hidden = !keeps(response);
    if (!current || !keeps(current)) show(responses.find(keeps) ?? null);
  }

  // ------------------------------------------------------------------ theme, start

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => ($("theme").textContent = isDark() ? "Light" : "Dark");
  prefersDark.addEventListener("change", nameTheme);
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });

  nameTheme();
  buildLegend();
  buildWeights();
  buildLoops();
  buildList();
  buildFilter();
  $("size").textContent = `${count(responses.length, "response")}, ${count(sorted.length, "token")}`;
  $("fraction").value = 100 * showOutlines();
  $("fraction").addEventListener("input", (event) => setFraction(event.target.valueAsNumber / 100));
  await show(responses[0] ?? null);
  document.documentElement.dataset.ready = "";
})();
