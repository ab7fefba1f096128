"""NestJS's ClientProxy for Python."""
