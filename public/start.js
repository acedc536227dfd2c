// Loaded with the page, before Chainlit shows anything: what the elements share, and a few words.
import * as documents from './page/document.js';
import * as place from './page/place.js';
import * as sampling from './page/sampling.js';
import * as settings from './page/settings.js';
import { page } from './page/store.js';

// The elements in public/elements cannot import from here.
Object.assign(window, { page: Object.assign(page, documents, place, sampling, settings) });

// Chainlit's page is dark at first; this one is as the person's system is.
if (!localStorage.getItem('vite-ui-theme')) localStorage.setItem('vite-ui-theme', 'system');

// Chainlit's own words, as they fit here, and names for what has none.
function label() {
  const box = document.getElementById('chat-input');
  if (box) {
    box.placeholder = 'Type the beginning of a text…';
    box.setAttribute('aria-label', 'Prompt');
  }
  const help = document.getElementById('readme-button');
  if (help && help.textContent !== 'Help') help.textContent = 'Help';
  for (const [id, name] of [['chat-submit', 'Generate'], ['stop-button', 'Stop'], ['theme-toggle', 'Theme']])
    document.getElementById(id)?.setAttribute('aria-label', name);
}
new MutationObserver(label).observe(document, { childList: true, subtree: true });
