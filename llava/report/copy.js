"use strict";
// A button that copies the command beside it; where a page may not write to the clipboard, the command is selected.
for (const box of document.querySelectorAll(".command")) {
  const button = box.querySelector("button"), code = box.querySelector("code");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
}
