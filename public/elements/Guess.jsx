// Tab of the panel: the text stops before a word. The learner guesses it, and sees what the model expected.
import { useEffect, useSyncExternalStore } from 'react';

const OPTIONS = 6;
const bitsOf = (prob) => -Math.log2(prob);

function Score({ answer: { guess, prob }, pause, next, nextWord }) {
  const { surprises } = page.state;
  const mean = surprises.reduce((sum, bits) => sum + bits, 0) / surprises.length;
  const { Choices } = page.components;
  return <>
    <p id="score" aria-live="polite">
      The model gave <b className="label">{guess}</b> {page.percent(prob)}: a surprise of <b>{bitsOf(prob).toFixed(1)} bits</b>.
      {' '}It wrote <b className="label">{page.wordAt(pause)}</b>.
    </p>
    <p className="legend">
      Your average over {surprises.length} {surprises.length === 1 ? 'guess' : 'guesses'}: {mean.toFixed(1)} bits. 0 bits: the model was
      certain of your word. {bitsOf(1 / page.config.vocab_size).toFixed(1)} bits: as if all tokens were equally likely.
    </p>
    {nextWord}
    {next && <Choices index={pause} token={page.tokensOf(page.document())[pause]} next={next} />}
  </>;
}

function Guess() {
  const { asked, answer, running, surprises, classroom, offline } = useSyncExternalStore(page.subscribe, page.get);
  const pause = page.pause();
  const next = pause === null ? undefined : page.look('next', page.read(pause));
  useEffect(() => void (pause === null && page.pauseAfter(page.promptOf(page.document()).length + 3)), [pause, page.idsOf(page.document()).length]);
  const { Asked, WordForm } = page.components;
  if (classroom?.teaching && !classroom.bars) return <Asked />; // the next question comes after Reveal
  if (pause === null) return <p>{running ? 'The model is writing a few words…' : 'No more words to guess here. Press Continue to get more.'}</p>;
  const nextWord = <button type="button" id="next-guess" className="primary" onClick={() => page.pauseAfter(pause + 8)}>Next word</button>;
  if (page.isAsked(pause)) return <><Asked />{nextWord}</>;
  if (answer) return <Score answer={answer} pause={pause} next={next} nextWord={nextWord} />;
  const options = next?.top.filter(({ text }) => /^ (a|I|\p{L}{2,})$/u.test(text)).slice(0, OPTIONS).map(({ text }) => text.trim()).sort();
  const reveal = async (guess) => {
    const [prob] = (await page.request('look', { what: 'word', ids: page.read(pause), word: guess })) ?? [];
    if (prob && asked === page.state.asked) page.set({ surprises: [...surprises, bitsOf(prob)], answer: { guess, prob } });
  };
  const ready = options && !offline;
  const ask = () => page.takePart({ ids: page.read(pause), options, wrote: page.wordAt(pause), pause });
  return <>
    <p>The text stops here. Which word comes next? Pick one or type your own.</p>
    <WordForm key={asked} options={options} button="Reveal" send={reveal} />
    <button type="button" id="ask-class" title="Others guess this word on their own devices, anonymously" aria-disabled={!ready} onClick={() => ready && ask()}>Ask the class</button>
    {classroom?.teaching && <Asked />}
  </>;
}

export default page.part('Guess', Guess);
