"""`python -m training.photos PHOTOS`: inspect a folder of photos."""

from training.photos.inspect import main

if __name__ == "__main__":
    main()
