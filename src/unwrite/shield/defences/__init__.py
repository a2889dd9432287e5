"""What an attacker does against protected pictures: changes them before they are trained on, or trains on another loss."""
