"""SceneParse150, the 150 classes of ADE20K's scene parsing challenge."""
