"""Does the server survive too many requests, hostile files and a long life?

benchmarks.robustness.overload   latency of accepted requests at ten times the server's capacity
benchmarks.robustness.soak       memory and open files over 100,000 requests
benchmarks.robustness.fuzz       responses to damaged and hostile files, from hostile_files.py
benchmarks.robustness.bombs      CPU and memory for small files that cost much, one of each class

The first two need wrk (`apt install wrk`).
"""
