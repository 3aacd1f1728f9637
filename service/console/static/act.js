// Forms of commands: a second press of a button does nothing, and what is wrong is what is looked at first.

const AGAIN_MS = 40000; // longer than the console waits for a broker: then the button may be pressed again

for (const form of document.querySelectorAll("form[data-once]")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) {
      event.preventDefault();
      return;
    }
    form.dataset.sent = "yes";
    event.submitter?.setAttribute("aria-disabled", "true");
    setTimeout(() => free(form), AGAIN_MS);
  });
}

// A page that comes back from the browser's own memory has forgotten nothing: free its buttons.
addEventListener("pageshow", () => document.querySelectorAll("form[data-once]").forEach(free));

function free(form) {
  delete form.dataset.sent;
  for (const button of form.querySelectorAll("[aria-disabled]")) button.removeAttribute("aria-disabled");
}

document.getElementById("errors")?.focus();

// A link to a field that is folded away unfolds it.
for (const link of document.querySelectorAll("#errors a")) {
  link.addEventListener("click", () => {
    const field = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    const folded = field?.closest("details");
    if (folded) folded.open = true;
    field?.focus();
  });
}
