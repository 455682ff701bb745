// Runs before anything is painted, so that a page never flashes in the other theme.
(function () {
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* storage is forbidden: as the system has it */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
