"""How fast does the server answer, and what does it need?

benchmarks.serving           throughput, latency and memory beside other servers; the limit that two
                             processes without HTTP set; where the time of a request goes
benchmarks.serving.latency   latency of one request after another, time from start to first response
benchmarks.serving.growth    cost by size of photo and batch, number of connections and processes
benchmarks.serving.servers   the same application in our server, gunicorn and Waitress

The first writes README.md in this folder. All but `latency` need wrk (`apt install wrk`).
"""
