"""What bgpool costs and what it spares, beside what people use: ``python -m benchmarks``."""
