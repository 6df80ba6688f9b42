# Of the photos, the fraction that is answered. Photos from elsewhere pass less often than these;
# at 97 % few more photos of other things pass than at 95 %.
COVERAGE = 0.97
