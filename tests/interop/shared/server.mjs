// A Nest microservice; prints one line, READY {json}, on stdout when it can be called.
import { makeController, makeState } from './handlers.mjs';
import { makeGrpcController } from './grpc.mjs';
import { serveHttp } from './http.mjs';
import { createTopics, deleteTopics } from './kafka.mjs';
import { logger } from './logger.mjs';
import { openProxy } from './proxy.mjs';
import { nestOptions } from './transports.mjs';

export async function serve(nest, given) {
  process.on('uncaughtException', (error) => {
    console.error('uncaught', error);
    process.exit(1);
  });
  const state = makeState(nest);
  const parts = given.transport === 'http' ? await serveHttp(nest, given, state) : await serveMicroservice(nest, given, state);
  const ready = { pid: process.pid, nest: nest.version, transport: given.transport, ...parts.ready };
  process.stdout.write(`READY ${JSON.stringify(ready)}\n`);
  process.once('SIGTERM', async () => {
    setTimeout(() => process.exit(1), 8000).unref();
    await parts.close();
    await state.close();
    process.exit(0);
  });
}

async function serveMicroservice(nest, given, state) {
  const options = await nestOptions(nest, 'server', given);
  const kafka = given.transport === 'kafka';
  if (given.stamped) options.options.serializer = stamping(given.transport);
  const made = given.transport === 'grpc' ? makeGrpcController(nest, given, state) : makeController(nest, given, state);
  if (kafka) {
    const topics = made.topics.flatMap((topic) => [topic, `${topic}.reply`]);
    await createTopics(nest, options.options.client, topics);
  }
  class App {}
  nest.common.Module({ controllers: [made.Interop] })(App);
  const app = await nest.core.NestFactory.createMicroservice(App, { ...options, logger, abortOnError: false });
  if (given.transport === 'grpc' && given.grpcExceptionFilter) {
    app.useGlobalFilters(new nest.microservices.GrpcExceptionFilter());
  }
  await app.listen();
  if (['redis', 'nats', 'mqtt'].includes(given.transport) && given.selfCheck !== false) await untilSubscribed(nest, given);
  return {
    ready: { topics: made.topics },
    async close() {
      await app.close();
      if (kafka) await deleteTopics(nest, options.options.client, made.topics.flatMap((topic) => [topic, `${topic}.reply`]));
    },
  };
}

// What is sent gets a key of the service's own, as serializers of applications add one.
function stamping(transport) {
  const stamped = (packet) => ({ ...packet, at: Date.now() });
  if (transport === 'nats') return { serialize: (packet) => ({ data: new TextEncoder().encode(JSON.stringify(stamped(packet))) }) };
  if (transport === 'mqtt') return { serialize: (packet) => JSON.stringify(stamped(packet)) };
  return { serialize: stamped };
}

// Nest says that it listens before the broker has confirmed its subscriptions, so it is asked until it answers.
async function untilSubscribed(nest, given) {
  const { firstValueFrom, timeout } = nest.rxjs;
  const { noAck, queue, ...rest } = given.options ?? {};
  const proxy = await openProxy(nest, { ...given, options: rest });
  // `forward` is the last of the messages, the number among those after it.
  const last = 42;
  try {
    for (let tries = 1; ; tries += 1) {
      try {
        await firstValueFrom(proxy.send(last, {}).pipe(timeout(500)));
        return;
      } catch (error) {
        if (tries === 20) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  } finally {
    await proxy.close();
  }
}
