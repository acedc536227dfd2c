// The page before the first prompt: what this is, a few prompts to begin with, and earlier texts.
import { useSyncExternalStore } from 'react';

const { starters } = props;
const firstWords = (document) => page.textOf(document).slice(0, 60);

function Start() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  if (page.document()) return null;
  const prompts = state.linked ? [state.linked] : starters;
  return (
    <section className="start" aria-label="Start">
      <h1>A small GPT</h1>
      <p>
        This small model was trained on one short story and nothing else. It does not answer: it continues what you
        type, as the story might.
      </p>
      <h2>{state.linked ? 'The prompt of this link' : 'Type a prompt below, or begin with one of these'}</h2>
      <div id="starters">
        {prompts.map((prompt) => (
          <button key={prompt} type="button" className="starter" onClick={() => page.send(prompt)}>{prompt}</button>
        ))}
      </div>
      {state.documents.length > 0 && (
        <>
          <h2>Earlier texts, kept in this browser</h2>
          <div id="earlier">
            {state.documents.map((document) => (
              <button key={document.id} type="button" className="starter" onClick={() => page.open(document.id)}>
                {firstWords(document)}…
              </button>
            ))}
          </div>
        </>
      )}
    </section>
  );
}

export default page.component('Start', Start);
