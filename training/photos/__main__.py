"""`python -m training.photos PHOTOS`: inspect a folder of photos."""

from training.photos.inspect import main

main()
