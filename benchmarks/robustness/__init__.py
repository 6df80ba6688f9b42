"""Does the server survive too many requests, hostile files and a long life, and training its end?

benchmarks.robustness.overload   latency of accepted requests at ten times the server's capacity
benchmarks.robustness.soak       memory and open files over 100,000 requests
benchmarks.robustness.fuzz       responses to damaged and hostile files, from hostile_files.py
benchmarks.robustness.bombs      CPU and memory for small files that cost much, one of each class
benchmarks.robustness.attack     a good client during an attack of all hostile_clients.py and files
benchmarks.robustness.fleet      four servers behind a proxy: restarted, killed and frozen
benchmarks.robustness.resume     training's commands, killed at random moments and started again

The first two need wrk (`apt install wrk`), the fleet needs HAProxy (`apt install haproxy`).
"""
