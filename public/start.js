// Loaded before Chainlit shows anything: code that the elements share, and a few labels.
import './page/storage.js'; // first
import * as configuration from './page/config.js';
import * as documents from './page/document.js';
import * as sampling from './page/sampling.js';
import * as settings from './page/settings.js';
import { page } from './page/store.js';

// The elements in public/elements cannot import from here.
Object.assign(window, { page: Object.assign(page, configuration, documents, sampling, settings) });

// Follow the system's theme; Chainlit's default is dark.
if (!localStorage.getItem('vite-ui-theme')) localStorage.setItem('vite-ui-theme', 'system');

// Chainlit's labels in this page's words, and names for buttons that have none.
const WORDS = { Readme: 'Help' };
function label() {
  const box = document.getElementById('chat-input');
  if (box) {
    box.placeholder = 'Type the beginning of a text…';
    box.setAttribute('aria-label', 'Prompt');
  }
  for (const element of document.querySelectorAll('#readme-button, [role=dialog] h2, [role=dialog] h2 *, #readme-button *'))
    if (!element.firstElementChild && element.textContent in WORDS) element.textContent = WORDS[element.textContent];
  // Chainlit's page has no landmarks.
  document.getElementById('header')?.setAttribute('role', 'banner');
  document.getElementById('header')?.nextElementSibling?.setAttribute('role', 'main');
  for (const [id, name] of [['chat-submit', 'Generate'], ['stop-button', 'Stop'], ['theme-toggle', 'Theme']])
    document.getElementById(id)?.setAttribute('aria-label', name);
}
// Chainlit mounts the input again while the page loads: keep what has been typed, and the focus.
let box, focused;
addEventListener('focusin', ({ target }) => (focused = target));
function keepTyped() {
  const now = document.getElementById('chat-input');
  if (!now || now === box) return;
  if (box?.value && !now.value) {
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(now, box.value);
    now.dispatchEvent(new Event('input', { bubbles: true }));
  }
  if (box && focused === box) now.focus();
  box = now;
}
new MutationObserver(keepTyped).observe(document, { childList: true, subtree: true });
new MutationObserver(label).observe(document, { childList: true, subtree: true });
