const V="$VERSION", P="$PARTS"
