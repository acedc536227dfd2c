// The page before the first prompt: an introduction, ways to begin, and earlier texts.
import { useSyncExternalStore } from 'react';

const CARDS = [
  { name: 'write', title: 'Watch it write', text: 'The model continues a sentence, word by word.' },
  { name: 'guess', title: 'Guess the next word', text: 'It stops before a word. Can you guess as well as the model?' },
  { name: 'change', title: 'Change one word and see', text: 'Choose another word in its text, and it continues from there.' }
];

function rename(document) {
  const name = prompt('A name for this text', page.nameOf(document));
  if (name?.trim()) page.rename(document, name.trim());
}

const remove = (documents, what) => confirm(`Delete ${what}?`) && page.remove(documents);

function Start() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  if (!state.settings || page.document()) return null;
  const blocked = state.problem?.fatal === true;
  return (
    <section className="start column" aria-label="Start">
      <h1>A small GPT</h1>
      {state.problem && <p role="alert" className="problem">{state.problem.text}</p>}
      <p>
        This small model was trained on one short story and nothing else. It cannot answer questions. Write a
        beginning, and it continues in the story’s style.
      </p>
      <div id="cards">
        {CARDS.map(({ name, title, text }) => (
          <button key={name} id={`card-${name}`} type="button" className="card column" disabled={blocked} onClick={() => page.startWith(name)}>
            <b>{title}</b>
            <span>{text}</span>
          </button>
        ))}
      </div>
      <h2>Or type a beginning below, or use one of these</h2>
      <div id="starters" className="chips">
        {page.config.starters.map((prompt) => (
          <button key={prompt} type="button" className="starter" disabled={blocked} onClick={() => page.send(prompt)}>{prompt}</button>
        ))}
      </div>
      {state.documents.length > 0 && (
        <>
          <h2>Earlier texts{page.stores && ', stored in this browser'}</h2>
          <ul id="earlier" className="column">
            {state.documents.map((document) => (
              <li key={document.id} className="row">
                <button type="button" className="starter" onClick={() => page.open(document.id)}>{page.nameOf(document)}</button>
                <span className="chips">
                  <button type="button" aria-label={`Rename “${page.nameOf(document)}”`} onClick={() => rename(document)}>Rename</button>
                  <button type="button" aria-label={`Delete “${page.nameOf(document)}”`} onClick={() => remove([document], 'this text')}>Delete</button>
                </span>
              </li>
            ))}
          </ul>
          <button type="button" id="clear" onClick={() => remove(state.documents, 'all texts in this browser')}>Clear this browser</button>
        </>
      )}
      {!page.stores && <p id="not-stored">This browser does not store your texts. Copy or download what you want to keep.</p>}
    </section>
  );
}

export default page.component('Start', Start);
