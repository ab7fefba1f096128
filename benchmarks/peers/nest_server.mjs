// A plain Nest 12 microservice, what the client library is compared with: nest_server.mjs OPTIONS,
// the options of the tests' Nest programs as JSON.
import { nest } from '../../tests/interop/nest12/nest.mjs';
import { createTopics } from '../../tests/interop/shared/kafka.mjs';
import { nestOptions } from '../../tests/interop/shared/transports.mjs';

const { Controller, Module } = nest.common;
const { EventPattern, MessagePattern, Payload } = nest.microservices;

class App {
  sum(numbers) {
    return numbers.reduce((total, number) => total + number, 0);
  }

  event() {}
}
const decorate = (decorator, name) => decorator(App.prototype, name, Object.getOwnPropertyDescriptor(App.prototype, name));

const given = JSON.parse(process.argv[2]);
if (given.transport === 'grpc') {
  App.prototype.sum = ({ values }) => ({ total: values.reduce((total, number) => total + number, 0) });
  decorate(nest.microservices.GrpcMethod('Math', 'Sum'), 'sum');
} else {
  decorate(MessagePattern(given.transport === 'kafka' ? 'bench.sum' : ['bench.sum', { cmd: 'sum' }]), 'sum');
  if (given.transport !== 'kafka') decorate(EventPattern('bench.event'), 'event'); // as in ours.py
}
Controller()(App);
class Root {}
Module({ controllers: [App] })(Root);

const options = await nestOptions(nest, 'server', given);
if (given.transport === 'kafka') {
  await createTopics(nest, options.options.client, ['bench.sum', 'bench.sum.reply', 'bench.event']);
}
const app = await nest.core.NestFactory.createMicroservice(Root, { ...options, logger: false });
await app.listen();
process.stdout.write(`READY ${given.url ?? given.port}\n`);
process.stdin.on('end', () => process.exit(0)).resume();
