TrainerBase = SimpleTrainer = TrainerX = object
