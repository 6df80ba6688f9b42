"""`python -m training.transfer`: see training/photos/transfer.py."""

from training.photos.transfer import main

if __name__ == "__main__":
    main()
