// Chainlit's page is dark at first; this one is as the person's system is.
if (!localStorage.getItem('vite-ui-theme')) localStorage.setItem('vite-ui-theme', 'system');

// The box says what this page is for, and the pencil has a name for those who do not see it.
function label() {
  const box = document.getElementById('chat-input');
  if (box) box.placeholder = 'Type the beginning of a text…';
  for (const pencil of document.querySelectorAll('.edit-message:not([aria-label])'))
    pencil.setAttribute('aria-label', 'Change the prompt and begin anew from it');
}
new MutationObserver(label).observe(document, { childList: true, subtree: true });
