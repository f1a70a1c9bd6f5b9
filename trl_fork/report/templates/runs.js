// The theme of the page of runs; nothing else on it moves.
"use strict";

(() => {
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => (button.textContent = isDark() ? "Light" : "Dark");
  prefersDark.addEventListener("change", nameTheme);
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  nameTheme();
  document.documentElement.dataset.ready = "";
})();
