"""`python -m training.study`: see training/cifar10/study.py."""

from training.cifar10.study import main

if __name__ == "__main__":
    main()
