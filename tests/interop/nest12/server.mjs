import { nest } from './nest.mjs';
import { serve } from '../shared/server.mjs';

await serve(nest, JSON.parse(process.argv[2]));
