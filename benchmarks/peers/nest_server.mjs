// A plain Nest 12 microservice on TCP: what the client library is compared with.
import { nest } from '../../tests/interop/nest12/nest.mjs';

const { Controller, Module } = nest.common;
const { MessagePattern, Payload, Transport } = nest.microservices;

class App {
  sum(numbers) {
    return numbers.reduce((total, number) => total + number, 0);
  }

  cpu() {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  }
}
Payload()(App.prototype, 'sum', 0);
for (const name of ['sum', 'cpu']) {
  MessagePattern({ cmd: name })(App.prototype, name, Object.getOwnPropertyDescriptor(App.prototype, name));
}
Controller()(App);
class Root {}
Module({ controllers: [App] })(Root);

const port = Number(process.argv[2]);
const app = await nest.core.NestFactory.createMicroservice(Root, {
  transport: Transport.TCP,
  options: { host: '127.0.0.1', port },
  logger: false,
});
await app.listen();
process.stdout.write(`READY tcp://127.0.0.1:${port}\n`);
process.stdin.on('end', () => process.exit(0)).resume();
