// NestJS 12: ECMAScript modules.
import 'reflect-metadata';
import * as common from '@nestjs/common';
import * as core from '@nestjs/core';
import * as microservices from '@nestjs/microservices';
import * as rxjs from 'rxjs';

export const nest = {
  version: 12,
  common,
  core,
  microservices,
  rxjs,
  natsPackage: '@nats-io/transport-node',
  // Resolved from here, so that each version of Nest uses its own libraries.
  load: async (name) => {
    const module = await import(name);
    return module.default ?? module;
  },
};
