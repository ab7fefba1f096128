// A plain Nest 12 ClientProxy: prints calls a second for each number in flight.
import { nest } from '../../tests/interop/nest12/nest.mjs';

const { ClientProxyFactory, Transport } = nest.microservices;
const { lastValueFrom } = nest.rxjs;
const [port, seconds, ...inFlight] = process.argv.slice(2).map(Number);
const client = ClientProxyFactory.create({ transport: Transport.TCP, options: { host: '127.0.0.1', port } });
await client.connect();
const call = () => lastValueFrom(client.send({ cmd: 'sum' }, [1, 2, 3]));

async function run(number, time) {
  const end = performance.now() + time * 1000;
  let calls = 0;
  const began = performance.now();
  const caller = async () => {
    while (performance.now() < end) {
      if ((await call()) !== 6) throw new Error('wrong answer');
      calls += 1;
    }
  };
  await Promise.all(Array.from({ length: number }, caller));
  return calls / ((performance.now() - began) / 1000);
}

await run(64, 0.5);
const rates = {};
for (const number of inFlight) rates[number] = await run(number, seconds);
process.stdout.write(`${JSON.stringify(rates)}\n`);
process.exit(0);
