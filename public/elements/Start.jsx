// The page before the first prompt: an introduction, prompts to begin with, and earlier texts.
import { useSyncExternalStore } from 'react';

function Start() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  if (!state.settings || page.document()) return null;
  const prompts = state.linked ? [state.linked] : page.config.starters;
  const blocked = state.problem?.fatal === true;
  return (
    <section className="start" aria-label="Start">
      <h1>A small GPT</h1>
      <p>
        This small model was trained on one short story and nothing else. It cannot answer questions. Write a
        beginning, and it continues in the story’s style.
      </p>
      {state.problem && <p role="alert" className="problem">{state.problem.text}</p>}
      <h2>{state.linked ? 'The prompt from this link' : 'Type a prompt below, or begin with one of these'}</h2>
      <div id="starters">
        {prompts.map((prompt) => (
          <button key={prompt} type="button" className="starter" disabled={blocked} onClick={() => page.send(prompt)}>{prompt}</button>
        ))}
      </div>
      {state.documents.length > 0 && (
        <>
          <h2>Earlier texts, stored in this browser</h2>
          <div id="earlier">
            {state.documents.map((document) => (
              <button key={document.id} type="button" className="starter" onClick={() => page.open(document.id)}>
                {page.nameOf(document)}…
              </button>
            ))}
          </div>
        </>
      )}
    </section>
  );
}

export default page.component('Start', Start);
