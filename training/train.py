"""`python -m training.train`: see training/cifar10/train.py."""

from training.cifar10.train import main

if __name__ == "__main__":
    main()
