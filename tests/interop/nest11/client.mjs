import { nest } from './nest.mjs';
import { drive } from '../shared/client.mjs';

await drive(nest, JSON.parse(process.argv[2]));
