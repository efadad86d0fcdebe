"""Speed and memory of tensafe next to torch and to other libraries: `python -m benchmarks`, see docs/benchmarks.md."""
