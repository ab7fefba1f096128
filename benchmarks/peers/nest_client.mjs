// A plain Nest 12 ClientProxy: prints calls a second for each number in flight, and events a second
// for each "emit:number"; "cmd:number" are calls with an object for a pattern. nest_client.mjs OPTIONS SECONDS WHAT..
import { nest } from '../../tests/interop/nest12/nest.mjs';
import { nestOptions } from '../../tests/interop/shared/transports.mjs';

const { ClientProxyFactory } = nest.microservices;
const { lastValueFrom } = nest.rxjs;
const [text, seconds, ...whats] = process.argv.slice(2);
const given = JSON.parse(text);
const client = ClientProxyFactory.create(await nestOptions(nest, 'client', given));
if (given.transport === 'kafka') client.subscribeToResponseOf('bench.sum');
if (given.transport !== 'grpc') await client.connect();
for (let tries = 0; given.transport === 'kafka' && tries < 600; tries += 1) {
  if (client.getConsumerAssignments()['bench.sum.reply'] !== undefined) break;
  await new Promise((resolve) => setTimeout(resolve, 100));
}

const stub = given.transport === 'grpc' ? client.getService('Math') : null;
const send = async (pattern = 'bench.sum') => {
  if (stub) {
    if (Number((await lastValueFrom(stub.Sum({ values: [1, 2, 3] }))).total) !== 6) throw new Error('wrong answer');
    return;
  }
  if (Number(await lastValueFrom(client.send(pattern, [1, 2, 3]))) !== 6) throw new Error('wrong answer');
};
const sendObject = () => send({ cmd: 'sum' });
const emit = () => lastValueFrom(client.emit('bench.event', [1, 2, 3]), { defaultValue: null });

async function run(work, number, time) {
  const began = performance.now();
  const end = began + time * 1000;
  let calls = 0;
  const caller = async () => {
    while (performance.now() < end) {
      await work();
      calls += 1;
    }
  };
  await Promise.all(Array.from({ length: number }, caller));
  return calls / ((performance.now() - began) / 1000);
}

for (let tries = 0; ; tries += 1) { // Nest says that it listens before the broker has heard of it
  const answered = await Promise.race([
    send().then(() => true, () => false),
    new Promise((resolve) => setTimeout(resolve, 500, false)),
  ]);
  if (answered) break;
  if (tries === 180) throw new Error('no answer');
}
await run(() => send(), 64, 0.5);
const rates = {};
for (const what of whats) {
  const [number, kind] = what.split(':').reverse();
  rates[what] = await run({ emit, cmd: sendObject }[kind] ?? (() => send()), Number(number), Number(seconds));
}
process.stdout.write(`${JSON.stringify(rates)}\n`);
process.exit(0);
