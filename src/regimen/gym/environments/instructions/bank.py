"""Subjects to write about, and sentences from which the perfect player writes.

Every sentence takes a subject at `{s}` and holds no comma, no list and no name, so that it fits under any instruction.
"""

from __future__ import annotations

SUBJECTS = (
    "lighthouse", "bakery", "bicycle", "library", "harbour", "orchard", "museum", "railway", "violin", "telescope",
    "garden", "market", "bridge", "castle", "kitchen", "island", "forest", "desert", "river", "volcano", "windmill",
    "ferry", "theatre", "beehive", "vineyard", "glacier", "canal", "cathedral", "workshop", "observatory",
    "greenhouse", "aquarium", "sailboat", "typewriter", "compass", "lantern", "piano", "camera", "sundial", "meadow",
    "waterfall", "village", "fountain", "tunnel", "monastery", "playground", "shipyard", "sawmill", "tramway", "puppet",
)  # fmt: skip
GENRES = (
    "a short text", "a few sentences", "a note for a local newspaper", "a passage for a school book", "a diary entry",
    "a letter to a friend", "an advertisement", "a speech for a small audience",
)  # fmt: skip
# What texts in other languages are about: names that are spelled alike in all of them.
NAMES = (
    "Amsterdam", "Berlin", "Madrid", "Oslo", "Budapest", "Toronto", "Chicago", "Beethoven", "Mozart", "Shakespeare",
    "Einstein", "Picasso", "Rembrandt", "Madonna", "Toyota", "Lego", "Nintendo", "Wikipedia", "Android", "Tesla",
)  # fmt: skip

SENTENCES = (
    "The {s} has a long story that few people know well.",
    "My grandmother told me about it when I was small.",
    "Many visitors come here in the early morning to see it.",
    "There is always something new to learn from a {s}.",
    "It was built by hand and it took a great many years.",
    "On quiet days you can hear the wind around it.",
    "Children like to draw it because of its unusual shape.",
    "Some of the oldest parts have been kept as they were.",
    "We should take good care of what others have left us.",
    "A guide explains how each part works and why it matters.",
    "In winter the light falls on it in a different way.",
    "Nobody in our street would want to live without it.",
    "It is not easy to say what makes it so special.",
    "The first drawing of the {s} was found in an old book.",
    "Every summer a group of friends meets there for a week.",
    "Its colours change slowly from grey to a warm brown.",
    "You need patience if you want to understand how it works.",
    "They say that a good {s} never grows old.",
    "I went there twice and both times I stayed until dark.",
    "The best view of all is from the small hill behind it.",
    "What I remember most is the smell of wood and rain.",
    "A local artist made a large picture of it last year.",
    "It is open to everyone who wants to come and look.",
    "With a little help it will last another hundred years.",
    "The town has decided to repair the roof before spring.",
    "One can sit there for hours and think about nothing.",
    "This is the place where my brother learned to whistle.",
    "An engineer from the north was asked to measure it.",
    "Each stone tells us who has been there before.",
    "If you are in the area then do not miss it.",
)

FOREIGN: dict[str, tuple[str, ...]] = {
    "de": (
        "Ich habe viel über {s} gelesen und es war nicht immer leicht.",
        "Viele Menschen denken gern an {s} und an die alte Zeit.",
        "Das ist für mich ein schönes Thema und ich schreibe gern davon.",
        "Mein Bruder hat mir ein Buch gegeben in dem das alles steht.",
        "Man kann sich mit der Geschichte auch am Abend beschäftigen.",
        "Es ist nicht schwer zu sehen warum die Leute es so mögen.",
        "Wir sind mit der ganzen Familie dort gewesen und haben gelacht.",
        "Zum Schluss möchte ich sagen dass es sich wirklich lohnt.",
    ),
    "fr": (
        "Je pense souvent à {s} et à tout ce que cela représente pour nous.",
        "Beaucoup de gens connaissent {s} par les livres et par les images.",
        "Il y a dans cette histoire une leçon pour les enfants et pour les grands.",
        "Mon père est venu ici avec sa sœur et ils ont pris une photo.",
        "On ne sait pas pourquoi le monde en parle encore avec plaisir.",
        "Les plus jeunes sont contents de découvrir une chose nouvelle.",
        "Ce fut un beau jour et nous avons marché dans la ville.",
        "Pour finir je dirais que la visite est une bonne idée.",
    ),
    "es": (
        "Me gusta mucho {s} y lo digo siempre que puedo.",
        "Hay muchas personas que hablan de {s} con una gran sonrisa.",
        "La historia es larga pero se puede contar en pocas palabras.",
        "Mi hermano fue con los niños y no quiso volver a casa.",
        "En los libros se dice que todo era muy diferente antes.",
        "Por la noche las calles están llenas de gente y de música.",
        "No es fácil explicar lo que se siente cuando uno está allí.",
        "Al final creo que es una buena idea para todo el año.",
    ),
    "it": (
        "Mi piace molto {s} e ne parlo spesso con gli amici.",
        "Sono tante le persone che amano {s} anche se non lo dicono.",
        "La storia è lunga ma si può raccontare in poche parole.",
        "Mio fratello è andato con la famiglia e non voleva tornare.",
        "Nei libri si legge che tutto era diverso in quel tempo.",
        "Di sera le strade sono piene di gente e di musica.",
        "Non è facile spiegare quello che si sente quando si arriva.",
        "Alla fine credo che sia una buona idea per tutti.",
    ),
    "pt": (
        "Eu gosto muito de {s} e falo disso com os meus amigos.",
        "São muitas as pessoas que gostam de {s} e não o dizem.",
        "A história é longa mas pode ser contada em poucas palavras.",
        "O meu irmão foi com a família e não queria voltar.",
        "Nos livros diz que tudo era muito diferente naquele tempo.",
        "À noite as ruas estão cheias de gente e de música.",
        "Não é fácil explicar o que você sente quando chega lá.",
        "No fim eu acho que é uma boa ideia para todos.",
    ),
    "nl": (
        "Ik heb veel over {s} gelezen en het was niet altijd makkelijk.",
        "Er zijn veel mensen die graag aan {s} denken.",
        "Dit is voor mij een mooi onderwerp om over te schrijven.",
        "Mijn broer heeft me een boek gegeven waar het in staat.",
        "Het is niet moeilijk om te zien waarom men er van houdt.",
        "We zijn met de hele familie naar het feest geweest.",
        "In de avond zijn de straten vol met mensen en muziek.",
        "Ten slotte wil ik zeggen dat het zeker de moeite is.",
    ),
}
LANGUAGES = {
    "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch",
}  # fmt: skip

KEYWORDS = (
    "copper", "evening", "ladder", "winter", "pebble", "engine", "whisper", "carpet", "thunder", "feather",
    "silver", "harvest", "mirror", "basket", "candle", "blanket", "journey", "shadow", "anchor",
)  # fmt: skip
KEYWORD_SENTENCES = (
    "The word {k} is what comes to mind at once.",
    "Someone wrote {k} on the wall in large letters.",
    "Nothing there is as lovely as the {k} by the door.",
    "An old song about a {k} is still sung in the bar.",
    "Who would have thought that a {k} could mean so much.",
    "You will find one more {k} if you look behind the gate.",
)
COMMON_WORDS = (
    "special", "old", "people", "always", "good", "place", "years", "never", "best", "new", "small", "everyone",
    "little", "great", "should", "different",
)  # fmt: skip
FIRST_WORDS = ("Today", "Perhaps", "Still", "Sometimes", "Usually", "Later", "Once", "Indeed")
START_PHRASES = ("In my opinion", "As far as I can tell", "To begin with", "It seems to me that", "Let me tell you how")
END_PHRASES = (
    "That is all I have to say.", "Is there anything else you would like to know?", "And so the day ends.",
    "Thank you for reading to the end.", "May it stay that way.",
)  # fmt: skip
PLACEHOLDERS = "Please write to [name] at [address] before [date] and bring [number] friends."
POSTSCRIPT = "I almost forgot to tell you about the tea."
