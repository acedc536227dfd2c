// Tab of the panel: the text stops before a word. The learner guesses it, and sees what the model expected.
import { useEffect, useState, useSyncExternalStore } from 'react';

const OPTIONS = 6;
const bitsOf = (prob) => -Math.log2(prob);

function Score({ answer: { guess, prob }, pause, next }) {
  const { surprises } = page.state;
  const mean = surprises.reduce((sum, bits) => sum + bits, 0) / surprises.length;
  const { Bars } = page.components;
  return (
    <>
      <p id="score" aria-live="polite">
        The model gave <b className="label">{guess}</b> {page.percent(prob)}: a surprise of <b>{bitsOf(prob).toFixed(1)} bits</b>.
        {' '}It wrote <b className="label">{page.wordAt(pause)}</b>.
      </p>
      <p className="legend">
        Your average over {surprises.length} {surprises.length === 1 ? 'guess' : 'guesses'}: {mean.toFixed(1)} bits. 0 bits: the model was
        certain of your word. {bitsOf(1 / page.config.vocabulary).toFixed(1)} bits: as if all its tokens were equally likely.
      </p>
      <button type="button" id="next-guess" className="primary" onClick={() => page.pauseAfter(pause + 5)}>Next word</button>
      {next && <Bars index={pause} token={page.tokensOf(page.document())[pause]} next={next} />}
    </>
  );
}

function Guess() {
  const { pause, running, surprises } = useSyncExternalStore(page.subscribe, page.get);
  const [guess, setGuess] = useState('');
  const [answer, setAnswer] = useState(null); // the guess and its probability
  const next = pause === null ? undefined : page.look('next', page.read(pause));
  useEffect(() => {
    if (pause === null) page.pauseAfter(page.promptOf(page.document()).length);
  }, [pause, page.idsOf(page.document()).length]);
  useEffect(() => void (setGuess(''), setAnswer(null)), [pause]);
  if (pause === null) return <p>{running ? 'The model writes a few words…' : 'The text ends before the next pause. Continue it, and guess on.'}</p>;
  if (answer) return <Score answer={answer} pause={pause} next={next} />;
  const options = next?.top.filter(({ text }) => /^ \p{L}/u.test(text)).slice(0, OPTIONS).map(({ text }) => text.trim()).sort();
  const reveal = async (event) => {
    event.preventDefault();
    const prob = guess.trim() && (await page.probOf(pause, ` ${guess.trim()}`));
    if (!prob) return;
    page.set({ surprises: [...surprises, bitsOf(prob)], revealed: pause });
    setAnswer({ guess: guess.trim(), prob });
  };
  return (
    <form onSubmit={reveal} className="column">
      <p>The text stops here. Which word comes next? Pick one or type your own.</p>
      <div className="options chips">
        {options?.map((text) => <button key={text} type="button" aria-pressed={guess === text} onClick={() => setGuess(text)}>{text}</button>)}
      </div>
      <input id="guess" aria-label="Your guess" placeholder="Your own word" autoComplete="off" maxLength={40} value={guess} onChange={(event) => setGuess(event.target.value)} />
      <button type="submit" id="reveal" className="primary" aria-disabled={!guess.trim()}>Reveal</button>
    </form>
  );
}

page.component('Guess', Guess);
export default () => null; // Panel shows it
