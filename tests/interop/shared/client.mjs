// Drives a real Nest client by JSON lines on stdin; answers each with one line on stdout.
//
// {"id":1,"op":"send","pattern":...,"data":...,"metadata":{...},"timeout":ms,"take":n,"record":{...}}
// {"id":2,"op":"emit",...}   {"id":3,"op":"connect"}   {"id":4,"op":"close"}
// -> {"id":1,"values":[...],"times":[ms,...],"complete":true}
// -> {"id":1,"values":[...],"error":E,"error_name":"TimeoutError"}   error_name is null for a raw remote error
import { createInterface } from 'node:readline';
import { logger } from './logger.mjs';
import { openProxy } from './proxy.mjs';

function describe(error) {
  if (!(error instanceof Error)) return { error: error ?? null, error_name: null };
  const { name, message, code, details } = error;
  const trailers = error.metadata?.getMap?.();
  return { error: { message, code, details, metadata: trailers }, error_name: name };
}

export async function drive(nest, given) {
  const { take } = nest.rxjs;
  nest.common.Logger.overrideLogger(logger);
  const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
  // A broken peer must not end the process: NATS's client leaves rejections unhandled.
  process.on('unhandledRejection', (error) => say({ id: null, unhandled: String(error?.message ?? error) }));
  process.on('uncaughtException', (error) => say({ id: null, unhandled: String(error?.message ?? error) }));
  const proxy = await openProxy(nest, given);

  function call({ id, op, pattern, data, metadata, timeout, take: count, record }) {
    const started = performance.now();
    const values = [];
    const times = [];
    let source = proxy[op](pattern, data, metadata, record);
    if (count !== undefined) source = source.pipe(take(count));
    const late = new nest.rxjs.TimeoutError();
    let timing;
    const subscription = source.subscribe({
      next: (value) => {
        values.push(value === undefined ? { undefined: true } : value);
        times.push(performance.now() - started);
      },
      error: (error) => {
        clearTimeout(timing);
        say({ id, values, times, ...describe(error) });
      },
      complete: () => {
        clearTimeout(timing);
        say({ id, values, times, complete: true });
      },
    });
    if (timeout && !subscription.closed) {
      timing = setTimeout(() => {
        subscription.unsubscribe();
        say({ id, values, times, ...describe(late) });
      }, timeout);
    }
  }

  say({ id: null, ready: true, nest: nest.version });
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    try {
      if (command.op === 'send' || command.op === 'emit') call(command);
      else if (command.op === 'connect' || command.op === 'close') {
        const done = Promise.resolve(proxy[command.op]());
        done.then(
          () => say({ id: command.id, values: [], times: [], complete: true }),
          (error) => say({ id: command.id, values: [], times: [], ...describe(error) }),
        );
      } else throw new Error(`unknown op ${command.op}`);
    } catch (error) {
      say({ id: command.id, values: [], times: [], ...describe(error) });
    }
  }
  await Promise.race([Promise.resolve(proxy.close()).catch(() => {}), new Promise((resolve) => setTimeout(resolve, 1000))]);
  process.exit(0);
}
