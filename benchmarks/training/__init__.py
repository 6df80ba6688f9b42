"""How long does training take to an accuracy, and what limits its speed?

benchmarks.training                  accuracy and minutes of the recorded runs (records/), beside
                                     published ones; training steps beside matrix products
benchmarks.training.step             throughput of a training step, one part exchanged at a time
benchmarks.training.pairs            whole trainings in turn: accuracy, minutes, arithmetic
benchmarks.training.calibration      how many held-out images temperature and threshold take
benchmarks.training.input_pipeline   throughput of augmentation beside that of the training step

The first writes README.md in this folder.
"""
