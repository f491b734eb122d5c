"""What several passes need and no other room of the project does."""
