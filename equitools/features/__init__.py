"""What a frozen encoder says of pictures: the only thing that evaluations see."""
